"""Controls that need no model: what a person's own history answers by itself.

A method that does not beat them has learned nothing about the person. Each control is a pure function from a
user and her examples to predictions without likelihoods; `CONTROLS` names them as the tables do. They look at
`user.history` themselves, not at the items retrieved for the prompt, so settings of the prompt do not change them.

Example:
    >>> [prediction.text for prediction in CONTROLS["majority"](get_task("lamp-2"), user, examples)]
    ['comedy', 'comedy']
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from mta.errors import ConfigError
from mta.metrics import parse_rating
from mta.personalize import Personalized, PersonalizedUsers, Resources, renderer
from mta.records import Example, HistoryItem, Prediction, User
from mta.retrieval import TextIndex
from mta.tasks.task import Task
from mta.tasks.texts import cut_words, need

Control = Callable[[Task, User, Sequence[Example]], list[Prediction]]

LEAD_WORDS = 12
"""Words of the text that the lead takes as a title; most headlines have about as many."""


def majority(task: Task, user: User, examples: Sequence[Example]) -> list[Prediction]:
    """Answer every query with what is usual in the person's own history.

    Label tasks: her most frequent label; among equally frequent ones the one that stands last in the history.
    LaMP-1 remembers citations but no "[1]" or "[2]", so the answer is always the first label. Rating tasks: the
    mean of her ratings, not rounded (the metrics read "4.2" as a number; the mean is the fair opponent for RMSE).
    A history without any answer of use gives the task's `default_answer`.

    Raises:
        ConfigError: the task asks for free text, where no answer is usual.
    """
    if task.kind == "text":
        raise ConfigError(
            f"no majority answer for {task.task_id}: its answers are free text; use {', '.join(controls_for(task))}"
        )
    answers = _own_answers(task, user)
    if not answers:
        usual = default_answer(task)
    elif task.kind == "rating":
        usual = _mean(answers)
    else:
        usual = _most_frequent(answers)
    return [_prediction(example, usual) for example in examples]


def nearest(task: Task, user: User, examples: Sequence[Example]) -> list[Prediction]:
    """Answer every query as the person answered the most similar item of her own history.

    Similar is what BM25 ranks first with the task's own retrieval texts; items without an answer of use are
    passed over. LaMP-1 chooses between two options instead: the one that shares more with her titles and citations
    (BM25 over the two options, asked for every different word of the history; on a tie the first option). An empty
    history gives the task's `default_answer`.
    """
    if task.task_id == "lamp-1":
        return [_prediction(example, _familiar_option(user, example)) for example in examples]
    useful = [(item, answer) for item in user.history if (answer := _answer(task, item)) is not None]
    index = TextIndex([task.retrieval_text(item) for item, _ in useful])

    def answer_of(example: Example) -> str:
        best = index.rank(task.retrieval_query(example.fields), top_k=1)
        return useful[best[0]][1] if best else default_answer(task)

    return [_prediction(example, answer_of(example)) for example in examples]


def lead(task: Task, user: User, examples: Sequence[Example]) -> list[Prediction]:
    """Answer every query with the first 12 words of its own text; the user's history plays no part.

    Raises:
        ConfigError: the task asks for a label or a rating.
        DataError: an example lacks the task's input field.
    """
    if task.kind != "text":
        raise ConfigError(
            f"no lead for {task.task_id}: its answers are not free text; use {', '.join(controls_for(task))}"
        )
    return [_prediction(example, cut_words(need(example.fields, task.input_field), LEAD_WORDS)) for example in examples]


CONTROLS: dict[str, Control] = {"majority": majority, "nearest": nearest, "lead": lead}
"""Method name in tables -> control."""


def control_fits(name: str, task: Task) -> bool:
    """Say whether a control means something for a task: no majority of free texts, no lead for labels."""
    return name != ("majority" if task.kind == "text" else "lead")


def controls_for(task: Task) -> Mapping[str, Control]:
    """Return the controls that mean something for a task."""
    return {name: control for name, control in CONTROLS.items() if control_fits(name, task)}


def default_answer(task: Task) -> str:
    """Return the answer for a history that says nothing: the first label, the middle rating, or no text."""
    if task.kind == "text":
        return ""
    return task.labels[len(task.labels) // 2] if task.kind == "rating" else task.labels[0]


def simple_method(control: Control) -> Callable[[Sequence[User], Resources], PersonalizedUsers]:
    """Return a control as a method: it answers by itself and asks no model."""

    def method(users: Sequence[User], resources: Resources) -> PersonalizedUsers:
        return without_model(users, resources, partial(control, resources.task))

    return method


def without_model(
    users: Sequence[User],
    resources: Resources,
    answers: Callable[[User, Sequence[Example]], Sequence[Prediction]],
) -> PersonalizedUsers:
    """Serve every user with answers that ask no model."""
    task, prompts = resources.task, resources.prompts
    render = renderer(task, prompts)
    return PersonalizedUsers(
        {
            user.user_id: Personalized(user, task, None, render, prompts, answers=partial(answers, user))
            for user in users
        }
    )


def _answer(task: Task, item: HistoryItem) -> str | None:
    """The person's answer to one item, or None where it is blank, no label or no number."""
    answer = task.normal_answer(item.get(task.output_field))
    if task.kind == "rating":
        return answer if parse_rating(answer) is not None else None
    if task.kind == "label":
        return answer if answer in task.labels else None
    return answer.strip() or None


def _own_answers(task: Task, user: User) -> list[str]:
    return [answer for item in user.history if (answer := _answer(task, item)) is not None]


def _mean(ratings: Sequence[str]) -> str:
    values = [float(rating) for rating in ratings]
    return f"{sum(values) / len(values):.10g}"


def _most_frequent(answers: Sequence[str]) -> str:
    counts = Counter(reversed(answers))  # equal counts keep the order of insertion, so the last item goes first
    return counts.most_common(1)[0][0]


def _familiar_option(user: User, example: Example) -> str:
    options = [need(example.fields, name) for name in ("option_1", "option_2")]
    known = {word for item in user.history for name in ("title", "citation") for word in item.get(name).lower().split()}
    return f"[{TextIndex(options).rank(' '.join(sorted(known)), top_k=1)[0] + 1}]"


def _prediction(example: Example, text: str) -> Prediction:
    return Prediction(query_id=example.example_id, user_id=example.user_id, gold=example.answer, text=text)
