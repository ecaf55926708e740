"""What invented people prefer, what they are asked, and what they answer, one shape per task.

A shape draws scenes (a text together with the facts it was put together from) and knows the answer of a person
with given likes. The likes are one tuple of names for every shape:

    task     likes, in this order                                                    answer
    lamp-1   the school of method liked best in each area, in the order of AREAS   the option of the better school
    lamp-2   all 15 tags, favourite first                                          the first tag the film holds
    lamp-3   aspect counting two stars, two aspects counting one, mood             3 plus or minus those stars
    lamp-4   wording of headlines, ending put behind them                          a headline on the subject
    lamp-5   wording of titles, ending put behind them                             a title on the method
    own      wording of replies, ending put behind them                            a reply about the thing

Everybody belongs to a group, whose members share likes up to quirks: groups overlap, quirks are personal.
Nothing here knows files or seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

from mta.data import persona_texts as words
from mta.errors import unknown_name

Likes = tuple[str, ...]
Facts = Mapping[str, str]

TAGS = tuple(words.CLUES)
CITATION_LABELS = ("[1]", "[2]")
RATING_LABELS = ("1", "2", "3", "4", "5")

CITATION_QUESTION = (
    'For an author who has written the paper with the title "{title}", which reference is related? '
    'Just answer with [1] or [2] without explanation. [1]: "{first}" [2]: "{second}"'
)
MOVIE_QUESTION = (
    "Which tag does this movie relate to among the following tags? Just answer with the tag name without further "
    f"explanation. tags: [{', '.join(TAGS)}] description: "
)
RATING_QUESTION = (
    "What is the score of the following review on a scale of 1 to 5? just answer with 1, 2, 3, 4, or 5 without "
    "further explanation. review: "
)
HEADLINE_QUESTION = "Generate a headline for the following article: "
SCHOLARLY_QUESTION = "Generate a title for the following abstract of a paper: "


@dataclass(frozen=True, slots=True)
class Scene:
    """One invented thing that can be asked about, or remembered in a history."""

    fields: Mapping[str, str]
    """Texts of a history item, without the person's answer."""
    question: str
    """The raw query text."""
    facts: Facts
    """What the text holds, as far as the answer depends on it."""
    past_facts: Facts = field(default_factory=dict)
    """What the person answers from when the scene is one of her history, where that is more than the question shows."""
    remembered: Mapping[str, str] = field(default_factory=dict)
    """Answer -> what a history stores for it, where the two differ."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How people of one task are invented."""

    task_id: str
    output_field: str
    """Field of a history item that holds the person's answer."""
    key_field: str
    """Field that no two scenes may share."""
    labels: tuple[str, ...]
    """All possible answers; empty for free text."""
    metrics: tuple[str, ...]
    groups: Mapping[str, Likes]
    """Group -> likes of a member without quirks."""
    vary: Callable[[Random, Likes], Likes]
    """Give a group's likes the quirks of one person."""
    draw: Callable[[Random, str], Scene]
    """Invent one scene, set in the given place."""
    answer: Callable[[Likes, Facts], str]
    """The answer of somebody with these likes, before any noise."""
    stray: Callable[[Random, str, Facts], str]
    """A wrong but possible answer instead of the given one."""
    noise: float
    """Share of answers that are strays."""


def find_shape(task_id: str) -> Shape:
    """Return the shape of a task.

    Raises:
        NotFound: no people can be invented for it; the message lists the tasks.
    """
    if task_id not in SHAPES:
        raise unknown_name("task of invented people", task_id, SHAPES)
    return SHAPES[task_id]


def _rotated(names: Likes, start: int) -> Likes:
    return names[start:] + names[:start]


# lamp-1: whom a paper cites --------------------------------------------------------------------------------------


def _draw_paper(rng: Random, place: str) -> Scene:
    area = rng.choice(tuple(words.AREAS))
    parts = {"subject": rng.choice(words.AREAS[area]), "place": place, "months": str(rng.randrange(5, 60))}
    title = rng.choice(words.PAPER_TITLES).format(**parts)
    schools = {f"[{number}]": school for number, school in enumerate(rng.sample(tuple(words.SCHOOLS), 3), start=1)}
    cited = {option: _cited_title(rng, school) for option, school in schools.items()}
    return Scene(
        fields={"title": title, "abstract": rng.choice(words.PAPER_ABSTRACTS).format(**parts)},
        question=CITATION_QUESTION.format(title=title, first=cited["[1]"], second=cited["[2]"]),
        facts={"area": area, "[1]": schools["[1]"], "[2]": schools["[2]"]},
        past_facts={"area": area, **schools},  # when she wrote the paper she could cite any school
        remembered=cited,
    )


def _cited_title(rng: Random, school: str) -> str:
    return f"{rng.choice(words.CITED_LEADS)} {rng.choice(words.SCHOOLS[school])} {rng.choice(words.CITED_TAILS)}"


def _cited_option(likes: Likes, facts: Facts) -> str:
    """The option whose school comes first when SCHOOLS is read in a circle from the one liked in the paper's area."""
    schools = tuple(words.SCHOOLS)
    liked = likes[tuple(words.AREAS).index(facts["area"])]
    ranking = _rotated(schools, schools.index(liked))
    return min(_options(facts), key=lambda option: ranking.index(facts[option]))


def _options(facts: Facts) -> list[str]:
    return [name for name in facts if name != "area"]


def _own_school(rng: Random, likes: Likes) -> Likes:
    """In one area everybody likes another school than the group does."""
    area = rng.randrange(len(likes))
    school = rng.choice([name for name in words.SCHOOLS if name != likes[area]])
    return (*likes[:area], school, *likes[area + 1 :])


def _other_option(rng: Random, answer: str, facts: Facts) -> str:
    return rng.choice([option for option in _options(facts) if option != answer])


# lamp-2: which theme of a film is its tag ------------------------------------------------------------------------


def _draw_film(rng: Random, place: str) -> Scene:
    themes = rng.sample(TAGS, rng.choice((2, 3)))
    clues = {theme: rng.choice(words.CLUES[theme]) for theme in themes}
    hero = rng.choice(words.HEROES)
    frame = rng.choice(words.FILM_FRAMES[len(themes)])
    text = frame.format(*clues.values(), hero=hero, hero_lower=hero[0].lower() + hero[1:], place=place)
    return Scene(fields={"description": text}, question=MOVIE_QUESTION + text, facts=clues)


def _favourite_theme(likes: Likes, facts: Facts) -> str:
    """The theme of the film that stands first in the likes."""
    return min(facts, key=likes.index)


def _promote_two(rng: Random, likes: Likes) -> Likes:
    """Everybody has two pet themes that come before those of the group."""
    pets = rng.sample(likes, 2)
    return (*pets, *(theme for theme in likes if theme not in pets))


def _other_theme(rng: Random, answer: str, facts: Facts) -> str:
    return rng.choice([theme for theme in facts if theme != answer])


# lamp-3: how many stars ------------------------------------------------------------------------------------------


def _draw_review(rng: Random, place: str) -> Scene:
    verdicts = {aspect: rng.choice(("good", "bad")) for aspect in rng.sample(tuple(words.ASPECTS), 3)}
    phrases = [rng.choice(words.ASPECTS[aspect][verdict == "bad"]) for aspect, verdict in verdicts.items()]
    text = rng.choice(words.REVIEW_FRAMES).format(
        *phrases, product=rng.choice(words.PRODUCTS), month=rng.choice(words.MONTHS), place=place
    )
    return Scene(fields={"text": text}, question=RATING_QUESTION + text, facts=verdicts)


def _stars(likes: Likes, facts: Facts) -> str:
    """3, two stars up or down for the first aspect, one for the next two, plus the mood; kept within 1 to 5."""
    first, second, third, mood = likes
    worth = {first: 2, second: 1, third: 1}
    signs = {aspect: 1 if verdict == "good" else -1 for aspect, verdict in facts.items()}
    total = 3 + sum(sign * worth.get(aspect, 0) for aspect, sign in signs.items()) + words.MOODS[mood]
    return str(min(5, max(1, total)))


def _own_mood(rng: Random, likes: Likes) -> Likes:
    """A mood of one's own, and for every second person another third aspect."""
    first, second, third, _ = likes
    if rng.random() < 0.5:
        third = rng.choice([aspect for aspect in words.ASPECTS if aspect not in (first, second)])
    return (first, second, third, rng.choice(("even", "even", "kind", "strict")))


def _one_star_off(rng: Random, answer: str, _facts: Facts) -> str:
    return str(rng.choice([star for star in (int(answer) - 1, int(answer) + 1) if 1 <= star <= 5]))


# lamp-4, lamp-5, own: how something is worded --------------------------------------------------------------------


def _draw_article(rng: Random, place: str) -> Scene:
    facts = {"subject": f"{rng.choice(words.SUBJECT_KINDS)} {rng.choice(words.SUBJECT_THINGS)}", "place": place}
    text = rng.choice(words.NEWS_FRAMES).format(
        **facts, day=rng.choice(words.DAYS), years=rng.randrange(3, 20), detail=rng.choice(words.NEWS_DETAILS)
    )
    return Scene(fields={"text": text}, question=HEADLINE_QUESTION + text, facts=facts)


def _draw_abstract(rng: Random, place: str) -> Scene:
    facts = {
        "name": rng.choice(words.SYSTEM_NAMES),
        "method": rng.choice(words.METHODS),
        "problem": rng.choice(words.PROBLEMS),
        "place": place,
    }
    text = rng.choice(words.SCHOLARLY_FRAMES).format(**facts, count=rng.randrange(6, 90))
    return Scene(fields={"abstract": text}, question=SCHOLARLY_QUESTION + text, facts=facts)


def _draw_request(rng: Random, place: str) -> Scene:
    facts = {"thing": rng.choice(words.THINGS), "day": rng.choice(words.DAYS), "place": place}
    text = rng.choice(words.REQUEST_FRAMES).format(**facts, hour=rng.randrange(7, 22), reason=rng.choice(words.REASONS))
    return Scene(fields={"input": text}, question=text, facts=facts)


def _worded(frames: Mapping[str, str], endings: Mapping[str, str]) -> Callable[[Likes, Facts], str]:
    """Answers that put the facts into a person's frame and ending; {Subject} and {SUBJECT} set a fact's case."""

    def answer(likes: Likes, facts: Facts) -> str:
        cases = {name.upper(): text.upper() for name, text in facts.items()}
        cases |= {name.capitalize(): text[:1].upper() + text[1:] for name, text in facts.items()}
        return (frames[likes[0]] + endings[likes[1]]).format(**{**cases, **facts})

    return answer


def _own_ending(endings: Mapping[str, str]) -> Callable[[Random, Likes], Likes]:
    def vary(rng: Random, likes: Likes) -> Likes:
        return (likes[0], rng.choice(tuple(endings)))

    return vary


def _never_strays(_rng: Random, answer: str, _facts: Facts) -> str:
    return answer


def _text_shape(
    task_id: str,
    fields: tuple[str, str],
    frames: Mapping[str, str],
    endings: Mapping[str, str],
    draw: Callable[[Random, str], Scene],
) -> Shape:
    return Shape(
        task_id=task_id,
        key_field=fields[0],
        output_field=fields[1],
        labels=(),
        metrics=("rouge_1", "rouge_l"),
        groups={group: (group, "plain") for group in words.GROUPS},
        vary=_own_ending(endings),
        draw=draw,
        answer=_worded(frames, endings),
        stray=_never_strays,
        noise=0.0,
    )


SHAPES: dict[str, Shape] = {
    shape.task_id: shape
    for shape in (
        Shape(
            task_id="lamp-1",
            key_field="title",
            output_field="citation",
            labels=CITATION_LABELS,
            metrics=("accuracy", "macro_f1"),
            groups={
                "harbour": ("neural", "survey", "rules", "rules"),
                "mountain": ("survey", "survey", "neural", "rules"),
                "city": ("rules", "neural", "neural", "survey"),
                "desert": ("neural", "rules", "survey", "survey"),
                "farm": ("survey", "neural", "rules", "neural"),
            },
            vary=_own_school,
            draw=_draw_paper,
            answer=_cited_option,
            stray=_other_option,
            noise=0.05,
        ),
        Shape(
            task_id="lamp-2",
            key_field="description",
            output_field="tag",
            labels=TAGS,
            metrics=("accuracy", "macro_f1"),
            groups={group: _rotated(TAGS, 3 * index) for index, group in enumerate(words.GROUPS)},
            vary=_promote_two,
            draw=_draw_film,
            answer=_favourite_theme,
            stray=_other_theme,
            noise=0.05,
        ),
        Shape(
            task_id="lamp-3",
            key_field="text",
            output_field="score",
            labels=RATING_LABELS,
            metrics=("mae", "rmse"),
            groups={
                group: (*_rotated(tuple(words.ASPECTS), index)[:3], "even") for index, group in enumerate(words.GROUPS)
            },
            vary=_own_mood,
            draw=_draw_review,
            answer=_stars,
            stray=_one_star_off,
            noise=0.05,
        ),
        _text_shape("lamp-4", ("text", "title"), words.HEADLINE_FRAMES, words.HEADLINE_ENDINGS, _draw_article),
        _text_shape("lamp-5", ("abstract", "title"), words.SCHOLARLY_TITLES, words.SCHOLARLY_ENDINGS, _draw_abstract),
        _text_shape("own", ("input", "output"), words.REPLY_FRAMES, words.REPLY_ENDINGS, _draw_request),
    )
}
