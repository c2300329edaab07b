"""Which intents and unions are held out: files of the package, and how they were drawn.

L0 judges the intents of training on wordings that were not trained on, L1 unions of such intents
that were not trained on, L2 intents without rows or texts in training, and L3 the intents of a set
that is out of training as a whole. The intents of `development` are out of training while choices
are made and return to training for the measured run.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

from oral_lib import storage

UNION_SIZES = (2, 3, 4, 5)  # intents of a union
LARGEST_WITHOUT = 3  # intents of X in "X but not Y"


@dataclass(frozen=True)
class Union:
    """A task on several intents: messages about any of `about`, but not about `not_about`."""

    name: str  # such as "clinc150.union-017"
    about: tuple[str, ...]
    not_about: tuple[str, ...] = ()


@dataclass(frozen=True)
class Splits:
    """The held-out intents and unions of a family, by name."""

    development: tuple[str, ...]
    unions: tuple[Union, ...]  # L1
    unseen: tuple[str, ...]  # L2
    other_set: tuple[str, ...]  # L3
    trained_sets: tuple[str, ...]  # sets that a model judged on L3 is trained on
    shared_subjects: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """(set, intents of other sets that a message of the set may be about as well)"""

    @classmethod
    def of(cls, content: Mapping) -> "Splits":
        """The splits that a file of splits contains."""
        shared = content.get("shared_subjects", {})
        return cls(
            development=tuple(content["development"]),
            unions=tuple(
                Union(union["name"], tuple(union["about"]), tuple(union.get("not_about", ())))
                for union in content["L1"]
            ),
            unseen=tuple(content["L2"]),
            other_set=tuple(content["L3"]),
            trained_sets=tuple(content["L3_trained_on"]),
            shared_subjects=tuple((name, tuple(shared[name])) for name in sorted(shared)),
        )


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How the splits of a family are drawn; the numbers are stored in the file of splits."""

    seed: int
    domains: int  # held-out domains of the first set
    single: Mapping[str, int]  # further held-out intents, by set
    development: Mapping[str, int]  # intents of development, by set
    unions: int
    without: int  # tasks "X but not Y"
    trained_sets: Sequence[str]
    twins: Sequence[str] = ()  # intents that another set has as well: never held out
    shared_subjects: Mapping[str, Sequence[str]] = field(default_factory=dict)


TWINS = (  # intents of one set that the other set has as well, or nearly so
    *(
        "banking77.card_about_to_expire",
        "banking77.card_arrival",
        "banking77.card_delivery_estimate",
    ),
    *("banking77.card_not_working", "banking77.card_payment_not_recognised"),
    *("banking77.cash_withdrawal_not_recognised", "banking77.change_pin"),
    *("banking77.compromised_card", "banking77.declined_card_payment", "banking77.exchange_charge"),
    *("banking77.exchange_rate", "banking77.get_physical_card", "banking77.lost_or_stolen_card"),
    *("banking77.lost_or_stolen_phone", "banking77.order_physical_card", "banking77.pin_blocked"),
    *("banking77.transfer_into_account", "banking77.visa_or_mastercard"),
    *("clinc150.account_blocked", "clinc150.card_declined", "clinc150.damaged_card"),
    *("clinc150.exchange_rate", "clinc150.expiration_date", "clinc150.find_phone"),
    *("clinc150.international_fees", "clinc150.new_card", "clinc150.pin_change"),
    *("clinc150.replacement_card_duration", "clinc150.report_fraud", "clinc150.report_lost_card"),
    "clinc150.transfer",
)
MONEY = (  # intents of CLINC150 whose messages could have been sent to the bank of BANKING77
    *("account_blocked", "balance", "bill_balance", "bill_due", "freeze_account", "interest_rate"),
    *("min_payment", "order_checks", "pay_bill", "pin_change", "report_fraud", "routing"),
    *("spending_history", "transactions", "transfer", "application_status", "apr", "card_declined"),
    *("credit_limit", "credit_limit_change", "credit_score", "damaged_card", "expiration_date"),
    *("improve_credit_score", "international_fees", "new_card", "redeem_rewards"),
    *("replacement_card_duration", "report_lost_card", "rewards_balance"),
    *("exchange_rate", "find_phone", "travel_notification", "direct_deposit"),
)
SPLIT_RULES = {
    "splits": Rule(
        seed=0,
        domains=2,
        single={"clinc150": 15, "banking77": 15},
        development={"clinc150": 12, "banking77": 8},
        unions=42,
        without=24,
        trained_sets=("clinc150",),
        twins=TWINS,
        shared_subjects={"banking77": [f"clinc150.{intent}" for intent in MONEY]},
    ),
    "splits_made": Rule(
        seed=0,
        domains=1,
        single={"made": 1, "other": 1},
        development={"made": 1, "other": 1},
        unions=3,
        without=2,
        trained_sets=("made",),
    ),
}


@cache
def read_splits(name: str) -> Splits:
    """The splits in the file `<name>.json` of this package."""
    folder = resources.files("oral_lib") / "tasks" / "intents"
    return Splits.of(storage.read_json(folder / f"{name}.json"))


def propose(domains: Mapping[str, str], rule: Rule) -> dict:
    """The content of a file of splits, drawn with the seed of `rule`.

    Whole domains come from the first of `rule.trained_sets` and have no twin. The unions of L1 have
    intents that are seen in development, too. None contains another one, or is its complement.

    Args:
        domains: the domain of every intent, as "set.domain", by the intent's name.
        rule: numbers of intents and unions, and which intents are never held out.

    Returns:
        A dictionary for `storage.write_json`; `Splits.of` reads it.
    """
    rng = random.Random(rule.seed)
    first = rule.trained_sets[0]
    twins = set(rule.twins)
    with_twins = {domains[name] for name in twins}
    whole = sorted({d for d in domains.values() if _set(d) == first} - with_twins)
    chosen = set(rng.sample(whole, rule.domains))
    unseen = {name for name, domain in domains.items() if domain in chosen}
    development = set()
    for n_by_set, group in ((rule.single, unseen), (rule.development, development)):
        for name, n in sorted(n_by_set.items()):
            usable = {i for i in domains if _set(i) == name} - twins - unseen - development
            group.update(rng.sample(sorted(usable), n))
    seen = {n: d for n, d in domains.items() if n not in unseen | development}
    taken: list[Union] = []
    for without, n in ((False, rule.unions), (True, rule.without)):
        while n:
            union = draw_union(seen, rng, without)
            if not forbidden(union, taken, tuple(seen)):
                taken.append(union)
                n -= 1
    return {
        "seed": rule.seed,
        "domains": sorted(chosen),
        "development": sorted(development),
        "L1": [
            {
                "name": f"{_set(u.about[0])}.union-{i:03d}",
                "about": u.about,
                "not_about": u.not_about,
            }
            for i, u in enumerate(taken)
        ],
        "L2": sorted(unseen),
        "L3": sorted(
            i for i in domains if _set(i) not in rule.trained_sets and i not in development
        ),
        "L3_trained_on": list(rule.trained_sets),
        "twins": sorted(twins),
        "shared_subjects": {
            name: sorted(rule.shared_subjects[name]) for name in rule.shared_subjects
        },
    }


def draw_union(domains: Mapping[str, str], rng: random.Random, without: bool) -> Union:
    """A random union of intents of one set, half of the time of one domain; its name is empty.

    Args:
        domains: the domain of every intent that may be drawn, as "set.domain", by name.
        rng: random numbers.
        without: whether to draw "X but not Y"; Y has one or two intents of X's domains.
    """
    names = sorted(domains)
    intent = rng.choice(names)
    same_domain = [n for n in names if domains[n] == domains[intent] and n != intent]
    same_set = [n for n in names if _set(n) == _set(intent) and n != intent]
    pool = same_domain if rng.random() < 0.5 and len(same_domain) >= UNION_SIZES[-1] else same_set
    sizes = [n for n in UNION_SIZES if not without or n <= LARGEST_WITHOUT]
    about = {intent, *rng.sample(pool, min(rng.choice(sizes) - 1, len(pool)))}
    if not without:
        return Union("", tuple(sorted(about)))
    near = sorted(n for n in names if domains[n] in {domains[a] for a in about} and n not in about)
    return Union(
        "",
        tuple(sorted(about)),
        tuple(sorted(rng.sample(near, min(rng.choice((1, 2)), len(near))))),
    )


def forbidden(union: Union, held_out: Sequence[Union], names: Sequence[str]) -> bool:
    """Whether `union` must not be in training, because of one of the unions `held_out`.

    The intents of one contain all intents of the other, or they are complements among `names`.
    """
    return any(
        nested(union, other)
        or (
            len(union.about) + len(other.about) == len(names)
            and {*union.about, *other.about} == set(names)
        )
        for other in held_out
    )


def nested(one: Union, other: Union) -> bool:
    """Whether the intents of one union contain all intents of the other."""
    about = set(one.about)
    return about.issubset(other.about) or about.issuperset(other.about)


def _set(name: str) -> str:
    return name.partition(".")[0]
