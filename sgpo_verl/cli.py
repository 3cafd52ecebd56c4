"""The ``sgpo`` command. Heavy imports wait inside the handlers, so that ``--help`` answers at once."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from sgpo_verl.errors import SgpoError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="sGPO for verl: profile prompts, see what training will cost, train with one word more (+sgpo=paper), compare.",
)
HYDRA = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=HYDRA)
def profile(
    context: typer.Context,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Where to write; default: where the training run looks for it."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a profile that is already there.")] = False,
) -> None:
    """Measure the pass rate of every training prompt: N samples each, under the initial policy.

    Takes the arguments of the training command: the same Hydra overrides, --config-dir and --config-name.

    Example: sgpo profile data.train_files=train.parquet actor_rollout_ref.model.path=... +sgpo=paper -o profile.parquet
    """
    from sgpo_verl.run_config import compose

    config = compose(context.args)
    from sgpo_verl.binding.profile_command import run

    run(config, output, force)


@app.command(context_settings=HYDRA)
def plan(
    context: typer.Context,
    profile: Annotated[Path, typer.Argument(help="A profile written by `sgpo profile`.")],
    plot: Annotated[Path | None, typer.Option("--plot", help="Also draw it, to this PNG file.")] = None,
) -> None:
    """Show what training from PROFILE will do, and its forecast cost beside stock GRPO on the same data.

    After PROFILE, give the arguments of the training command: batch size, rollouts, epochs and sgpo settings count.
    """
    from sgpo_verl import plan_view
    from sgpo_verl.plan import make_plan
    from sgpo_verl.profile import load_profile
    from sgpo_verl.run_config import check_supported, compose, numbers_of, settings_of

    loaded = load_profile(profile)
    config = compose(context.args)
    check_supported(config)
    # Before the settings: sgpo.curriculum.epochs repeats trainer.total_epochs, and would be blamed for it.
    numbers = numbers_of(config)
    made = make_plan(loaded, settings_of(config), numbers)
    shape = plan_view.shape_of(config, loaded)
    plan_view.show(made, shape)
    if plot is not None:
        plan_view.draw(made, shape, plot)
        print(f"picture: {plot}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories: verl's metrics log and .hydra/config.yaml.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The HTML page to write; PNGs go beside it.")],
    metric: Annotated[
        str | None, typer.Option(help="Validation metric; default: mean accuracy over data sources.")
    ] = None,
) -> None:
    """Compare finished or running runs: accuracy against compute, groups over time, compute to target."""
    from sgpo_verl import report as reporting

    loaded = [reporting.load_run(path) for path in runs]
    print(reporting.compare(loaded, metric).to_text())
    print(f"report: {reporting.write(loaded, output, metric)[0]}")


@app.command()
def demo(
    directory: Annotated[Path, typer.Option("--dir", help="Where everything goes.")] = Path("demo_run"),
    seed: Annotated[int, typer.Option(help="Of base model, data and training.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of reusing finished stages.")] = False,
) -> None:
    """Train a tiny model on the spot with stock GRPO and with sGPO, on a CPU, and compare. About ten minutes."""
    from sgpo_verl.demo.run import main as run_demo

    run_demo(directory, seed=seed, fresh=fresh)


@app.command(context_settings=HYDRA)
def doctor(context: typer.Context) -> None:
    """Check the installation: versions, whether verl sees the plugin, and, with training arguments, the configuration."""
    from sgpo_verl.doctor import run

    if not run(context.args):
        raise typer.Exit(1)


def main() -> None:
    """Entry point: bad input is one line on standard error and exit code 2."""
    try:
        app()
    except SgpoError as error:
        print(f"sgpo: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
