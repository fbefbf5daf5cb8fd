"""``python -m bench``: the commands and their options, nothing else."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn


class OneLineParser(argparse.ArgumentParser):
    """Reports a wrong option in one line instead of after the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help lists the options)\n")


def modules() -> dict[str, Any]:
    """The commands, by name. The first is run where none is named."""
    from bench import accuracy, codegen, figure, gpu, host, report, run, tune
    from bench.accuracy import proof
    from bench.codegen import pytorch

    return {
        "grid": run, "report": report, "accuracy": accuracy, "proof": proof, "codegen": codegen, "pytorch": pytorch,
        "host": host, "tune": tune, "gpu": gpu, "figure": figure,
    }  # fmt: skip


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m bench",
        description="Measure sigmoid_op on the best device found (CUDA, else CPU).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, module in modules().items():
        summary, _, details = (module.__doc__ or "").partition("\n")
        command = commands.add_parser(name, help=summary, description=f"{summary} {details}", allow_abbrev=False)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
        if name == "grid":
            parser.epilog = "Without a command:\n\n" + command.format_help()
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run a command, ``grid`` where none is named; return the exit code."""
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["grid", *arguments]
    try:
        parsed = make_parser().parse_args(arguments)
        parsed.arguments = list(arguments)
        return int(parsed.run(parsed))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "bench", "sigmoid_op"):  # a mistake of ours
            raise
        print(f"python -m bench needs {package}: pip install {package}", file=sys.stderr)
        return 2
    except Exception as error:
        if type(error).__name__ != "UsageError":  # not imported: its module may be what is missing
            raise
        print(f"python -m bench {arguments[0]}: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
