"""``python -m bench``: the commands and their options, nothing else."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

# What the measurements need beyond the library itself, by the name of the module.
PACKAGES = {"matplotlib": "matplotlib", "mpmath": "mpmath", "rich": "rich", "sklearn": "scikit-learn"}


class OneLineParser(argparse.ArgumentParser):
    """Reports a wrong option in one line instead of after the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help lists the options)\n")


def make_parser() -> argparse.ArgumentParser:
    from bench import (
        accuracy,
        codegen,
        figure,
        gpu,
        host,
        proof,
        pytorch_kernels,
        report,
        revive,
        runner,
        train,
        tune,
        ways_in,
    )

    parser = OneLineParser(
        prog="python -m bench",
        description="Measure sigmoid_op on the best device found (CUDA, else CPU).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    modules = {
        "grid": runner,
        "train": train,
        "report": report,
        "codegen": codegen,
        "pytorch": pytorch_kernels,
        "host": host,
        "ways_in": ways_in,
        "figure": figure,
        "accuracy": accuracy,
        "proof": proof,
        "revive": revive,
        "gpu": gpu,
        "tune": tune,
    }
    for name, module in modules.items():
        summary, _, details = (module.__doc__ or "").partition("\n")
        command = commands.add_parser(name, help=summary, description=f"{summary} {details}", allow_abbrev=False)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
        if name == "grid":
            parser.epilog = "Without a command:\n\n" + command.format_help()
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run a command, ``grid`` where none is named; return the exit code."""
    try:
        parser = make_parser()
    except ModuleNotFoundError as error:
        return _missing(error)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["grid", *arguments]
    parsed = parser.parse_args(arguments)
    parsed.arguments = list(arguments)
    try:
        code: int = parsed.run(parsed)
    except ModuleNotFoundError as error:
        return _missing(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return code


def _missing(error: ModuleNotFoundError) -> int:
    """Say what to install, if that is what is missing: 2. Anything else is a mistake of ours, raised again."""
    package = PACKAGES.get((error.name or "").partition(".")[0])
    if package is None:
        raise error
    print(f"python -m bench needs {package}: pip install {package}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
