"""The cleanest control for personalization: everything of one's own but the adapter, which is another person's.

What merge-then-adapt loses by the swap is what its adapters know about the person.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mta.data.people import find_people, rule_for
from mta.errors import DataError
from mta.personalize import Personalized, PersonalizedUsers, Resources, personalize_users
from mta.records import User
from mta.tasks.task import Task


def swapped_user(users: Sequence[User], resources: Resources) -> PersonalizedUsers:
    """Serve every user with the merge-then-adapt adapter of the next person, in a circle by user id.

    History, prompts and queries stay the user's own. The adapters are those of the method "mta", read back where they
    are already there.

    Raises:
        DataError: all users are one person.
    """
    return swapped(personalize_users(users, resources, name="mta"), users, resources.task)


def swapped(made: PersonalizedUsers, users: Sequence[User], task: Task) -> PersonalizedUsers:
    """Return users as a method serves them, each with the adapters of the next person.

    Args:
        made: of these users, by a method under which all have equally many ways to be served.
        users: they.
        task: says what proves that two of them are one person.

    Raises:
        DataError: all users are one person.
    """
    groups = sorted(sorted(group) for group in find_people(users, rule=rule_for(task.task_id)))
    if len(groups) < 2:
        raise DataError(f"cannot swap adapters: the {len(users)} users are one person; give at least two people")
    following = [*groups[1:], groups[0]]
    donor_of = {user_id: other[0] for group, other in zip(groups, following, strict=True) for user_id in group}
    people = {name: _with_adapters_of(made.users[donor_of[name]], person) for name, person in made.users.items()}
    return replace(made, users=people)


def _with_adapters_of(donor: Personalized, person: Personalized) -> Personalized:
    ways = zip(donor.mixture, person.mixture, strict=True)
    mixture = tuple((share, _with_adapters_of(theirs, own)) for (_, theirs), (share, own) in ways)
    return replace(person, adapter=donor.adapter, match=donor.match, mixture=mixture)
