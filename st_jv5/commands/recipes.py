"""``st-jv5 train``, ``plan``, ``teach`` and ``recipes``: work with a recipe."""

from __future__ import annotations

import argparse
from typing import Any, get_args

from st_jv5.choices import STAGES, Engine
from st_jv5.commands.parsers import add_command, log_lines


def add_commands(commands: Any) -> None:
    """Add them to a parser's commands."""
    train = add_command(
        commands,
        "train",
        "run a recipe: teacher vectors, base, adapters, one model, its scores",
        """
        st-jv5 train recipe.yaml
        st-jv5 train recipe.yaml --set stage1.steps=50 --only stage1
        torchrun --nproc-per-node 8 -m st_jv5 train recipe.yaml
        """,
        run_train,
        more="Each stage writes its result to the output folder; it is skipped if that is there. "
        "A stage that was interrupted continues from its last checkpoint.",
        resumes=True,
    )
    train.add_argument("--only", choices=STAGES, help="run this stage only")
    train.add_argument(
        "--report-to",
        nargs="+",
        default=["none"],
        help="trackers to log to: tensorboard, trackio, wandb, ...; default: none",
    )
    train.add_argument(
        "--resume-anyway",
        action="store_true",
        help="continue from checkpoints even if data, arguments or versions differ",
    )
    train.add_argument("--plan", action="store_true", help="only print what st-jv5 plan prints")
    plan = add_command(
        commands,
        "plan",
        "show what a recipe will cost, after a short probe: tokens, memory, disk, hours",
        "st-jv5 plan recipe.yaml",
        run_plan,
    )
    plan.add_argument("--html", metavar="FILE", help="also write a page with plots")
    for parser in (train, plan):
        parser.add_argument(
            "--fraction",
            type=float,
            default=1.0,
            help="run this share of each phase's steps, such as 0.2 for a trial",
        )
    teach = add_command(
        commands,
        "teach",
        "compute the teacher vectors that a recipe needs",
        """
        st-jv5 teach recipe.yaml
        st-jv5 teach recipe.yaml --engine ray --workers 8
        torchrun --nproc-per-node 8 -m st_jv5 teach recipe.yaml
        """,
        run_teach,
        resumes=True,
    )
    teach.add_argument(
        "--engine",
        choices=get_args(Engine),
        default="local",
        help="local: this process; ray: the workers of a Ray cluster",
    )
    teach.add_argument(
        "--workers",
        type=int,
        help="number of Ray workers; default: one per GPU, or two without GPUs",
    )
    for parser in (train, plan, teach):
        parser.add_argument("recipe", help="a YAML file")
        parser.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="a.b=value",
            help="change a setting, such as stage1.steps=300; may be given several times",
        )
    recipes = add_command(
        commands,
        "recipes",
        "list the recipes that come with st_jv5, or copy one",
        """
        st-jv5 recipes
        st-jv5 recipes copy small
        """,
        run_recipes,
    )
    recipes.add_argument("action", nargs="?", metavar="copy", help="default: list them")
    recipes.add_argument("name", nargs="?", help="name of the recipe to copy")
    recipes.add_argument("--to", default=".", help="folder to copy to; default: the current one")


def run_train(args: argparse.Namespace) -> None:
    """Run the stages that are asked for, or print the plan."""
    if args.plan:
        run_plan(args)
        return
    log_lines()
    from st_jv5.recipe.context import Run
    from st_jv5.recipe.load import load_recipe
    from st_jv5.recipe.run import run_stages

    recipe = load_recipe(args.recipe, args.set, args.fraction)
    run_stages(Run(recipe, tuple(args.report_to), args.recipe, args.resume_anyway), args.only)


def run_plan(args: argparse.Namespace) -> None:
    """Print the tables of costs."""
    log_lines()
    from st_jv5.recipe.context import Run
    from st_jv5.recipe.load import load_recipe
    from st_jv5.recipe.planning.plan import plan_page, with_plots

    page = plan_page(Run(load_recipe(args.recipe, args.set, args.fraction)))
    print(page.markdown(), end="")
    if html := getattr(args, "html", None):  # `train --plan` has no such option
        with_plots(page).write_html(html)
        print(f"\npage: {html}")


def run_teach(args: argparse.Namespace) -> None:
    """Fill the store."""
    if args.workers is not None and (args.workers < 1 or args.engine == "local"):
        raise ValueError("--workers must be positive, and goes with --engine ray")
    log_lines()
    from st_jv5.recipe.context import Run
    from st_jv5.recipe.load import load_recipe
    from st_jv5.recipe.teach import teach

    teach(Run(load_recipe(args.recipe, args.set)), args.engine, args.workers)


def run_recipes(args: argparse.Namespace) -> None:
    """Print a line for each recipe, or for each copied file."""
    from st_jv5.recipe.shipped import copy_recipe, list_recipes

    if args.action not in (None, "copy"):
        raise ValueError(f"to copy a recipe: st-jv5 recipes copy {args.name or args.action}")
    if args.action:
        if args.name is None:
            raise ValueError("name a recipe: st-jv5 recipes copy NAME; st-jv5 recipes lists them")
        print("\n".join(copy_recipe(args.name, args.to)))
    else:
        print("\n".join(list_recipes()))
