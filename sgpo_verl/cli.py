"""The ``sgpo`` command. Heavy imports wait inside the handlers, so that ``--help`` answers at once."""

import errno
import io
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from sgpo_verl.errors import SgpoError


class _InOrder(typer.core.TyperGroup):
    """Lists the commands in the order in which they are used."""

    def list_commands(self, ctx: Any) -> list[str]:
        order = ["doctor", "data", "profile", "plan", "simulate", "report", "bench", "demo"]
        return [*order, *sorted(self.commands.keys() - set(order))]


app = typer.Typer(
    cls=_InOrder,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="sGPO for verl: profile prompts, see what training will cost, train with one word more (+sgpo=paper), compare.",
)
HYDRA = {"allow_extra_args": True, "ignore_unknown_options": True}


class _ProfileGroup(typer.core.TyperGroup):
    """``sgpo profile <overrides>`` is ``sgpo profile run <overrides>``: what is no subcommand is an argument of ``run``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if args and args[0] in self.commands else ["run", *args])


@app.command()
def data(
    name: Annotated[str, typer.Argument(help="gsm8k, math, math500, dapo or aime2024.", metavar="NAME")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for train.parquet and test.parquet.")],
    origin: Annotated[
        str | None, typer.Option("--from", help="Read it from this folder, file or hub name; default: its own.")
    ] = None,
) -> None:
    """Write a public data set as verl reads it, every question once: GSM8K, MATH, MATH-500, DAPO-Math-17k, AIME 2024.

    Example: sgpo data gsm8k -o data/gsm8k
    """
    from sgpo_verl.data.prepare import run

    run(name, origin, output)


profile = typer.Typer(cls=_ProfileGroup, pretty_exceptions_enable=False)
app.add_typer(profile, name="profile", help="Measure the pass rate of every training prompt; merge or show profiles.")


@profile.command(
    "run",
    context_settings=HYDRA,
    options_metavar="[OPTIONS] [OVERRIDES]...",
    epilog="See also: sgpo profile merge --help, sgpo profile show --help",
)
def run_profile(
    context: typer.Context,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Where to write; default: where the training run looks for it."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Discard a profile, or parts of one, that are there.")] = False,
    add: Annotated[
        int | None, typer.Option("--add", min=1, help="Sample every prompt of an existing profile N times more.")
    ] = None,
    endpoint: Annotated[
        list[str] | None,
        typer.Option("--endpoint", help="URL of an OpenAI-compatible server to sample from (repeat for more)."),
    ] = None,
    endpoint_model: Annotated[
        str | None, typer.Option("--endpoint-model", help="The model's name there, if it serves more than one.")
    ] = None,
) -> None:
    """Measure the pass rate of every training prompt: N samples each, under the initial policy.

    Takes the arguments of the training command: the same Hydra overrides, --config-dir and --config-name. A call that was
    interrupted, or killed, is taken up by the same call again.

    Example: sgpo profile data.train_files=train.parquet actor_rollout_ref.model.path=... +sgpo=paper -o profile.parquet
    """
    from sgpo_verl.run_config import compose, with_profile

    named = {"endpoints": list(endpoint) if endpoint else None, "endpoint_model": endpoint_model}
    config = with_profile(compose(context.args), {key: value for key, value in named.items() if value is not None})
    from sgpo_verl.binding.profile_command import run

    run(config, output, force, add)


@profile.command("merge")
def merge_profiles(
    profiles: Annotated[list[Path], typer.Argument(help="Profiles of the same model and settings.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write their sum.")],
) -> None:
    """Add up profiles: more trials of the same prompts, or more prompts."""
    from sgpo_verl.merge import merge
    from sgpo_verl.profile import load_profile, save_profile

    merged = merge([load_profile(path) for path in profiles], list(map(str, profiles)))
    save_profile(merged, output)
    print(f"profile: {output} ({len(merged)} prompts, {merged.samples} samples)")


@profile.command("show")
def show_profile(path: Annotated[Path, typer.Argument(help="A profile.")]) -> None:
    """Print what a profile found, and what it is a profile of."""
    from sgpo_verl import profile_view
    from sgpo_verl.profile import load_profile

    profile_view.show(load_profile(path), path)


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
    from sgpo_verl.checks.profile import mismatches
    from sgpo_verl.plan import make_plan
    from sgpo_verl.profile import load_profile
    from sgpo_verl.run_config import check_supported, compose, numbers_of, settings_of

    loaded = load_profile(profile)
    config = compose(context.args)
    check_supported(config)
    numbers = numbers_of(config)
    made = make_plan(loaded, settings_of(config), numbers)
    shape = plan_view.shape_of(config, loaded)
    plan_view.show(made, shape)
    if lines := mismatches(config, loaded.metadata):
        print(f"{profile}: is not a profile of this run ({'; '.join(lines)}): training from it would be refused")
    if plot is not None:
        plan_view.draw(made, shape, plot)
        print(f"picture: {plot}")


@app.command(context_settings=HYDRA, options_metavar="[OPTIONS] [OVERRIDES]...")
def simulate(
    context: typer.Context,
    compare: Annotated[
        list[str] | None,
        typer.Option("--compare", help='"METHOD key=value ...": simulate this too (repeat for more).'),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option("--profile", help="Simulate on prompts like those of this profile, not on made-up ones."),
    ] = None,
    prompts: Annotated[int | None, typer.Option("--prompts", help="Synthetic prompts; default: 2048.")] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Training steps; default: trainer.total_training_steps, else 160.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Runs of each method.")] = 3,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Also draw accuracy against FLOPs, to this PNG file.")
    ] = None,
) -> None:
    """Rank methods and ablations without training, beside stock GRPO: prompts are coins whose bias rises as they are taught.

    Takes the arguments of the training command. Without +sgpo=... and --compare: all methods. A model of learning, no training.

    Example: sgpo simulate --compare paper --compare "bayes sgpo.advantage=posterior"
    """
    from sgpo_verl import simulate_view

    simulate_view.run(context.args, compare or [], profile, prompts, steps, seeds, plot)


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
def bench(
    spec: Annotated[
        Path, typer.Argument(help="The benchmark's YAML file; recipes/bench/ has some.", metavar="SPEC.yaml")
    ],
    directory: Annotated[Path, typer.Option("--dir", help="Where everything goes, and where it is taken up again.")],
    only: Annotated[list[str] | None, typer.Option("--only", help="Run just this METHOD (repeat for more).")] = None,
    seeds: Annotated[str, typer.Option("--seeds", help="Run just these, as in 0,1.")] = "",
    fresh: Annotated[
        list[str] | None,
        typer.Option("--fresh", help="Forget what there is of this METHOD, or METHOD/seedK, and make it again."),
    ] = None,
    show: Annotated[bool, typer.Option("--print", help="Print the runs as shell commands, for a cluster.")] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Start nothing; report on what is finished.")
    ] = False,
) -> None:
    """Run every method with every seed on one task, tuned for the baseline, and report what each spent to get there.

    The same call goes on where an earlier one ended. Example: sgpo bench recipes/bench/cpu.yaml --dir bench_cpu
    """
    from sgpo_verl.bench.command import Choice, main, seeds_of

    choice = Choice(tuple(only or ()), seeds_of(seeds), tuple(fresh or ()))
    if code := main(spec, directory, choice, show, report_only):
        raise typer.Exit(code)


@app.command()
def demo(
    directory: Annotated[Path, typer.Option("--dir", help="Where everything goes.")] = Path("demo_run"),
    seed: Annotated[int, typer.Option(help="Of base model, data and training.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of reusing finished stages.")] = False,
) -> None:
    """Train a tiny model on the spot with stock GRPO and with sGPO, on a CPU, and compare. About twelve minutes."""
    from sgpo_verl.demo.run import main as run_demo

    run_demo(directory, seed=seed, fresh=fresh)


@app.command(context_settings=HYDRA, options_metavar="[OPTIONS] [OVERRIDES]...")
def doctor(
    context: typer.Context,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output, and nothing else.")
    ] = False,
    seams: Annotated[
        Path | None,
        typer.Option(
            "--seams", help="Only look whether this verl, a checkout or its package's folder, fits the plugin."
        ),
    ] = None,
) -> None:
    """Check the installation, and, given the arguments of a training command, what that run would do, without a GPU.

    Exit codes: 0 fine (warnings aside), 1 a check failed, 2 the arguments do not compose. The run itself refuses the same.

    Example: sgpo doctor --config-dir recipes --config-name gsm8k_1.5b_sgpo
    """
    from sgpo_verl.doctor.command import run

    if code := run(context.args, as_json, seams):
        raise typer.Exit(code)


def main() -> None:
    """Entry point: bad input is one line on standard error and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # bars and names, on a terminal that is not UTF-8
    try:
        app()
    except SgpoError as error:
        print(f"sgpo: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        print(f"sgpo: standard output cannot be written ({error.strerror})", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
