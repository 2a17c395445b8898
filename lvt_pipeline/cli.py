"""The `lvt` command: finds the stage modules, turns errors into one line and the right exit code.

Exit codes: 0 done or nothing to do, 1 error, 2 wrong options, 3 finished but over the failure budget, 75 stopped by a
signal after saving, 130 interrupted. This is the only library module that knows click or `stages`.
"""

from __future__ import annotations

import difflib
import os
import sys
from importlib import import_module

import click

from lvt_pipeline.errors import LVTError
from lvt_pipeline.provenance import lvt_version
from lvt_pipeline.storage import describe_os_error
from lvt_pipeline.streams import finish_streams, print_error, replace_closed_streams, restart_in_utf8

DISTRIBUTION = "lvt-pipeline"
INTERRUPTED = 130
# torch's CPU threads wait for each other in busy loops. With the default, milliseconds, two programs on the same cores
# are many times slower; some microseconds cost a program that is alone almost nothing. Read when torch loads.
SPINS = "5000"

# Command name -> module in `stages` and its one-line help. The help stands here so that `lvt --help` imports no stage.
COMMANDS = {
    "run": ("run", "Run all stages, from a folder of videos to a report."),
    "demo": ("demo", "Make procedural videos and run all stages on them."),
    "manifest": ("manifest", "List the clips of a dataset: one JSON line per clip."),
    "ingest": ("ingest", "Decode videos into shards of frames."),
    "show": ("show", "Show clips: a contact sheet or a film of frames, codes or samples."),
    "train-vqvae": ("train_vqvae", "Train the frame tokenizer."),
    "encode-dataset": ("encode_dataset", "Turn frames into a store of codes."),
    "train-prior": ("train_prior", "Train the video transformer on codes alone."),
    "sample": ("sample", "Continue clips with codes from a trained prior."),
    "continue": ("continue_video", "Continue a video file with sampled frames."),
    "play": ("play", "Steer a prior by hand: frames appear as they are sampled."),
    "decode": ("decode", "Turn codes back into mp4, gif, png or npy."),
    "evaluate": ("evaluate", "Measure reconstruction, prior, samples and baselines."),
    "compare": ("compare", "Compare evaluations, with intervals."),
    "reproduce": ("reproduce", "Reproduce tables and figures of the paper on any videos."),
    "figures": ("figures", "Plot figures of a work directory as PNG, SVG and CSV."),
    "report": ("report", "Write one self-contained HTML page about a work directory."),
    "status": ("status", "Print which stages of a work directory are done, running or stale."),
    "why": ("why", "Name what makes an artefact, or a clip of a store, stale."),
    "inspect": ("inspect", "Describe an artefact, its provenance and its contents."),
    "export": ("export", "Write codes as NumPy files, a memory map, webdataset tars or Parquet."),
    "import-codes": ("import_codes", "Make a code store of a folder of NumPy codes."),
    "verify": ("verify", "Check every byte of a code store."),
    "gc": ("gc", "List or delete files that a code store no longer needs."),
    "compact": ("compact", "Move live codes out of partly dead shards."),
    "doctor": ("doctor", "Check that this machine can run every stage."),
    "import-official": ("import_official", "Import checkpoints of the paper's released code."),
    "export-official": ("export_official", "Write a run as checkpoints of the paper's released code."),
}


def load_stage(module_name: str) -> click.Command:
    """Import a stage module and return its command.

    Raises:
        LVTError: another package's `stages` module shadows ours.
    """
    import stages

    if getattr(stages, "DISTRIBUTION", None) != DISTRIBUTION:
        raise LVTError(
            f"the package `stages` at {getattr(stages, '__file__', '?')} is not part of lvt-pipeline; "
            "rename it or run lvt from another folder"
        )
    command = import_module(f"stages.{module_name}").command
    assert isinstance(command, click.Command)
    return command


class StageGroup(click.Group):
    """Loads a stage module only when its command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return load_stage(COMMANDS[cmd_name][0]) if cmd_name in COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command.

        Raises:
            click.UsageError: there is none of this name; the message suggests another one.
        """
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {close[0]}?" if close else "lvt --help lists them"
            raise click.UsageError(f"there is no command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, help_line) in COMMANDS.items()])


@click.group(cls=StageGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(lvt_version(), prog_name="lvt")
def lvt() -> None:
    """Latent video transformers, from a folder of videos to generated video.

    Every stage reads and writes files; running the same command again resumes it or does nothing.

    Example: lvt run --videos my_videos --work-dir work --preset tiny
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    restart_in_utf8()
    replace_closed_streams()
    sys.exit(finish_streams(run(arguments)))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code. Expected errors become one line on stderr."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    try:
        result = lvt.main(args=arguments, prog_name="lvt", standalone_mode=False)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        message = " ".join(error.format_message().split()).rstrip(".")  # click lists choices on lines of their own
        see = " See" if message.endswith("?") else "; see"
        print_error(message + (f"{see} {context.command_path} --help" if context is not None else ""))
        return error.exit_code
    except LVTError as error:
        print_error(str(error))
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        print_error("interrupted; finished work is kept, run the same command again to resume")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output is gone, as in `lvt inspect x | head`
        return 1
    except OSError as error:
        if error.errno is None:
            raise
        print_error(str(describe_os_error(error, f"using {error.filename or 'a file'}")))
        return 1
    return result if isinstance(result, int) else 0
