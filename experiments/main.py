"""Run an experiment: `python -m experiments.main --config=configs/digits.py --workdir=DIR`."""

import sys

from experiments.workdir.stops import answer_signals, end_with_input


def run() -> None:
    """Entry point."""
    answer_signals()
    end_with_input()
    # After these, and the command at last, since it takes JAX and all else some seconds to load.
    from experiments import options, usage

    names = {one.lstrip("-").partition("=")[0] for one in sys.argv[1:] if one.startswith("-")}
    asked = any(one in usage.HELP for one in sys.argv[1:])
    if "config" not in names and asked:
        print(usage.overview(options.listed()))
        return
    # Others may name it in a file of flags, or ask absl for all that it has.
    if not names & {"config", "flagfile", "helpfull", "helpxml"}:
        print(usage.overview(options.listed()), file=sys.stderr)
        sys.exit("error: --config is missing, see above")
    from experiments import command

    if asked:
        command.explain([one for one in sys.argv if one not in usage.HELP])
    else:
        command.run()


if __name__ == "__main__":
    run()
