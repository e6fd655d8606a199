"""Run an experiment: `python -m experiments.main --config=configs/digits.py --workdir=DIR`."""

from experiments.workdir.stops import answer_signals, end_with_input


def run() -> None:
    """Entry point."""
    answer_signals()
    end_with_input()
    # After these, since it takes JAX and all else some seconds to load.
    from experiments import command

    command.run()


if __name__ == "__main__":
    run()
