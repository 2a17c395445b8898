"""Whether a prior that is conditioned on actions obeys them."""
