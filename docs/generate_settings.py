"""Write the lists of all keys in docs/configuration.md: `python docs/generate_settings.py`. A test compares them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lvt_pipeline.evaluation.settings import EvaluateSettings
from lvt_pipeline.jobs.ingest.settings import IngestSettings
from lvt_pipeline.jobs.settings import DecodeSettings, EncodeSettings, SampleSettings
from lvt_pipeline.manifest.settings import ManifestSettings
from lvt_pipeline.settings import Listed, list_settings
from lvt_pipeline.training.settings import PriorRunSettings, VQVAERunSettings

# Tables of a pipeline file, in the order of the stages.
STAGES = {
    "manifest": ManifestSettings,
    "ingest": IngestSettings,
    "encode": EncodeSettings,
    "sample": SampleSettings,
    "decode": DecodeSettings,
    "evaluate": EvaluateSettings,
}
TARGET = Path(__file__).with_name("configuration.md")
BEGIN, END = "<!-- made by docs/generate_settings.py -->\n", "<!-- end of the generated tables -->\n"


def render() -> str:
    """The lists."""
    tokenizer, prior = ({one.name: one for one in list_settings(cls)} for cls in (VQVAERunSettings, PriorRunSettings))
    parts = []
    for title, keys in (("Model of a tokenizer", tokenizer), ("Model of a prior", prior)):
        rows = [(one, [one.default]) for one in keys.values() if one.name.startswith("model.")]
        parts.append(f"### {title}\n\n{_table(('key', 'default', 'meaning'), rows)}")
    training = {name: one for name, one in {**tokenizer, **prior}.items() if name.startswith("training.")}
    rows = [
        (one, [keys[name].default if name in keys else "" for keys in (tokenizer, prior)])
        for name, one in training.items()
    ]
    parts.append(f"### Training\n\n{_table(('key', 'tokenizer', 'prior', 'meaning'), rows)}")
    for table, cls in STAGES.items():
        rows = [(one, [one.default]) for one in list_settings(cls, f"{table}.")]
        parts.append(f"### {table.capitalize()}\n\n{_table(('key', 'default', 'meaning'), rows)}")
    return "\n".join(parts)


def page(text: str) -> str:
    """The page with new lists."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{render()}\n{END}{after}"


def _table(heads: tuple[str, ...], rows: Iterable[tuple[Listed, list[str]]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for one, defaults in rows:
        choices = ", ".join(f"`{choice}`" for choice in one.choices)
        meaning = ". ".join(filter(None, (choices, one.meaning)))
        shown = [f"`{default}`" if default else "" for default in defaults]
        lines.append(f"| `{one.name}` | {' | '.join(shown)} | {meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TARGET.write_text(page(TARGET.read_text()))
