"""The subcommand `quickstart`, which ./reproduce.sh --only quickstart runs.

Imports with the standard library only.
"""

import shlex
from argparse import Namespace

from oral_lib.runner import environment


def do_quickstart(args: Namespace) -> None:
    """Generates an adapter with the released generator and prints what it changes."""
    from oral_lib.prompting import answers, quickstart
    from oral_lib.workflow import listings
    from oral_lib.zoo import run_folders

    place = run_folders.released_generator(quickstart.RELEASE)
    look = quickstart.first_look(
        place, args.save, source=args.source or place.source, offline=args.offline
    )
    names = (answers.base_column(look.base), "with the LoRA")
    print(f'\nthe sentence: "{quickstart.SENTENCE}"')
    print(f"the answers of the base model {look.base} compared with those under the LoRA:")
    print("\n".join(listings.answer_lines(look.pairs, names)))
    changed = sum(before.answer != after.answer for before, after in look.pairs)
    print(f"{changed} of {len(look.pairs)} answers changed; chosen examples, no measurement")
    command = environment.project_command()
    ask = ["ask", "--base", look.base, "--lora", str(look.folder), "--text", "Your own review."]
    sentence = "Decide whether a headline is sarcastic."
    generate = ["generate", "--base", look.base, "--text", sentence, "--save", "my-lora"]
    print(f"\nthe LoRA: {look.folder}")
    for what, words in (("ask it", ask), ("make another", generate)):
        print(f"{what}: {shlex.join([*command, *words])}")
