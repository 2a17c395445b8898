"""Videos to frame shards."""
