"""The cleanest control for personalization: everything of one's own but the adapter, which is another person's.

What merge-then-adapt loses by the swap is what its adapters know about the person.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mta.data.people import find_people, rule_for
from mta.errors import DataError
from mta.personalize import PersonalizedUsers, Resources, personalize_users
from mta.records import User


def swapped_user(users: Sequence[User], resources: Resources) -> PersonalizedUsers:
    """Serve every user with the merge-then-adapt adapter of the next person, in a circle by user id.

    History, prompts and queries stay the user's own. The adapters are those of the method "mta", read back where they
    are already there.

    Raises:
        DataError: all users are one person.
    """
    made = personalize_users(users, resources, name="mta")
    groups = sorted(sorted(group) for group in find_people(users, rule=rule_for(resources.task.task_id)))
    if len(groups) < 2:
        raise DataError(f"cannot swap adapters: the {len(users)} users are one person; give at least two people")
    following = [*groups[1:], groups[0]]
    donor_of = {user_id: other[0] for group, other in zip(groups, following, strict=True) for user_id in group}
    return replace(
        made,
        users={
            name: replace(person, adapter=made.users[donor_of[name]].adapter, match=made.users[donor_of[name]].match)
            for name, person in made.users.items()
        },
    )
