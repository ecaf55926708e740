"""The words that invented people and their items are put together from.

Only tables: phrases by theme, aspect, school or style, and frames that hold them. How they are combined and
who prefers what stands in `mta.data.persona_shapes`. Phrases keep double quotes out, because the LaMP-1
question quotes its titles.
"""

from __future__ import annotations

PLACES: dict[str, tuple[str, ...]] = {
    "harbour": (
        "in a fishing harbour",
        "beside the lighthouse",
        "on a ferry dock",
        "along the tidal flats",
        "near the old shipyard",
        "on a windy pier",
    ),
    "mountain": (
        "in an alpine village",
        "below the glacier",
        "at a ski lodge",
        "inside a cable car",
        "near a climbers' hut",
        "along the pine ridge",
    ),
    "city": (
        "in a crowded subway",
        "on a rooftop terrace",
        "by the tram depot",
        "in a glass tower",
        "on a neon boulevard",
        "under the overpass",
    ),
    "desert": (
        "at a dusty oasis",
        "among the sand dunes",
        "on a camel trail",
        "near the salt pans",
        "in a canyon town",
        "by a dry riverbed",
    ),
    "farm": (
        "in an apple orchard",
        "at a dairy farm",
        "beside the wheat mill",
        "by the hay barn",
        "near the beehives",
        "in a vegetable garden",
    ),
}
"""Group of people -> the places their items are mostly set in; an encoder can tell groups apart by them."""

GROUPS = tuple(PLACES)

# Films ---------------------------------------------------------------------------------------------------------

CLUES: dict[str, tuple[str, ...]] = {
    "sci-fi": (
        "a stranded starship",
        "robots that dream",
        "an alien signal",
        "a faulty time machine",
        "settlers from a distant planet",
    ),
    "based on a book": (
        "scenes from the bestselling novel",
        "chapters adapted from a beloved book",
        "lines straight from the novelist's pages",
        "a plot borrowed from a famous paperback",
        "a page-to-screen adaptation of a novel",
    ),
    "comedy": (
        "one silly joke after another",
        "hilarious misunderstandings",
        "slapstick mishaps",
        "laugh-out-loud banter",
        "a hopelessly clumsy sidekick",
    ),
    "action": (
        "a roaring car chase",
        "explosions and rooftop leaps",
        "a commando rescue",
        "nonstop stunts",
        "a race against a ticking bomb",
    ),
    "twist ending": (
        "a final reveal nobody expects",
        "a last scene that overturns everything",
        "a shocking surprise at the very end",
        "a closing secret that changes everything",
        "an ending that tricks every viewer",
    ),
    "dystopia": (
        "a future under total surveillance",
        "a regime that forbids memories",
        "rationed air in a police state",
        "a bleak tomorrow ruled by one company",
        "citizens sorted by number",
    ),
    "dark comedy": (
        "gallows humor at a funeral",
        "morbid jokes about murder",
        "a wickedly funny corpse disposal",
        "grim laughs over a poisoned cake",
        "a cheerful undertaker's cruel pranks",
    ),
    "classic": (
        "golden-age black-and-white glamour",
        "a legendary performance from the 1940s",
        "timeless scenes every film lover knows",
        "an old masterpiece's grand orchestra",
        "vintage studio charm",
    ),
    "psychology": (
        "a therapist's unsettling sessions",
        "a mind slowly losing its grip",
        "repressed childhood memories",
        "an obsession that splits a personality",
        "a patient who doubts her own mind",
    ),
    "fantasy": (
        "a dragon and its rider",
        "an enchanted forest",
        "a wizard's forbidden spell",
        "elves guarding a magic gate",
        "a cursed sword",
    ),
    "romance": (
        "a love affair by letter",
        "two strangers falling in love",
        "a tender first kiss",
        "a wedding promise kept",
        "sweethearts reunited",
    ),
    "thought-provoking": (
        "deep questions about free will",
        "a debate on the meaning of life",
        "ideas to ponder for days",
        "a quiet puzzle about truth and meaning",
        "a philosopher's unanswerable riddle",
    ),
    "social commentary": (
        "a sharp look at poverty and class",
        "a protest against unfair housing",
        "a satire of consumer society",
        "an outcry over racism at work",
        "workers striking against inequality",
    ),
    "violence": (
        "brutal knife fights",
        "bloody gang revenge",
        "savage beatings",
        "a gory massacre",
        "merciless torture",
    ),
    "true story": (
        "real events from 1974",
        "the actual life of a famous nurse",
        "a documented rescue that really happened",
        "facts taken from court records",
        "a real family's ordeal",
    ),
}
"""LaMP-2's tags, in the official order -> phrases that show the theme in a description."""

HEROES = (
    "A retired baker",
    "A young clockmaker",
    "A tired night nurse",
    "A stubborn ferry captain",
    "A shy piano tuner",
    "A disgraced reporter",
    "A lonely map maker",
    "A cheerful postman",
    "A runaway accountant",
    "A widowed teacher",
    "A travelling barber",
    "A nervous inspector",
    "A proud seamstress",
    "A forgotten boxer",
    "A curious librarian",
    "A reluctant mayor",
    "A homesick soldier",
    "A careless chemist",
    "A silent gardener",
    "A bankrupt magician",
)

FILM_FRAMES: dict[int, tuple[str, ...]] = {
    2: (
        "{hero} {place} gets a visit one rainy evening. What follows brings {0}, and soon after, {1}.",
        "{hero} takes a new job {place} and hopes for quiet. Instead the film offers {0} along with {1}.",
        "Everything changes for {hero_lower} {place} when an old friend calls. Expect {0} and also {1}.",
        "{hero} and a restless cousin spend the summer {place}. Their days hold {0}, then {1}.",
        "One winter, {hero_lower} opens a small shop {place}. The story mixes {0} with {1}.",
    ),
    3: (
        "{hero} {place} gets a visit. What follows brings {0}, {1} and finally {2}.",
        "{hero} takes a job {place}. The film offers {0}, {1} and {2}.",
        "Everything changes for {hero_lower} {place}. Expect {0}, {1} and also {2}.",
        "{hero} spends one summer {place}. The days hold {0}, {1} and {2}.",
        "One winter, {hero_lower} opens a shop {place}. The story mixes {0}, {1} and {2}.",
    ),
}
"""Number of themes -> descriptions; {0}, {1} and {2} take the clues."""

# Reviews -------------------------------------------------------------------------------------------------------

ASPECTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "price": (
        ("the price is a bargain", "it costs wonderfully little", "it was cheap for what you get"),
        ("the price is outrageous", "it costs far too much", "it was badly overpriced"),
    ),
    "build": (
        ("the build is rock solid", "it feels sturdy and well made", "nothing creaks or wobbles"),
        ("the build is flimsy", "it feels cheaply glued together", "a hinge snapped at once"),
    ),
    "speed": (
        ("it works amazingly fast", "it starts in a blink", "the speed is superb"),
        ("it works painfully slowly", "it takes ages to start", "the speed is dreadful"),
    ),
    "service": (
        ("the support team was lovely", "customer service fixed my question kindly", "the seller helped at once"),
        ("the support team was rude", "customer service ignored my letters", "the seller refused to help"),
    ),
    "looks": (
        ("it looks gorgeous", "the colours are beautiful", "its design is elegant"),
        ("it looks hideous", "the colours are ugly", "its design is clumsy and dull"),
    ),
    "battery": (
        ("the battery lasts for weeks", "one charge is plenty", "the battery is excellent"),
        ("the battery dies within an hour", "it needs charging constantly", "the battery is useless"),
    ),
}
"""Aspect -> phrases that praise it, phrases that blame it."""

PRODUCTS = (
    "desk lamp",
    "label printer",
    "toy drone",
    "bread slicer",
    "pocket radio",
    "garden pump",
    "wall clock",
    "travel kettle",
    "bike light",
    "hair dryer",
    "baby monitor",
    "milk frother",
    "cordless drill",
    "photo frame",
    "window cleaner",
    "hand mixer",
    "metal detector",
    "camping stove",
    "door bell",
    "rice cooker",
)

REVIEW_FRAMES = (
    "I have used this {product} {place} since {month}. To be exact, {0}, {1}, and {2}.",
    "Bought the {product} in {month} for use {place}. My notes say {0}, {1}, and {2}.",
    "We keep the {product} {place} and took it out in {month}. In short: {0}, {1}, and {2}.",
    "This {product} came in {month} and lives {place} now. What I noticed: {0}; {1}; {2}.",
    "My neighbour borrowed the {product} {place} in {month}. We agree that {0}, {1}, and {2}.",
)

MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)

MOODS: dict[str, int] = {"even": 0, "kind": 1, "strict": -1}
"""How generous somebody is -> stars added to every rating."""

# Papers and whom they cite -------------------------------------------------------------------------------------

AREAS: dict[str, tuple[str, ...]] = {
    "energy": (
        "solar panels",
        "battery storage",
        "wind turbines",
        "heat pumps",
        "power grids",
        "hydrogen fuel",
        "smart meters",
        "tidal turbines",
    ),
    "health": (
        "sleep loss",
        "heart rhythm",
        "joint pain",
        "vaccine uptake",
        "blood sugar",
        "hospital queues",
        "eye strain",
        "wound healing",
    ),
    "language": (
        "spelling errors",
        "folk tales",
        "dialect words",
        "sign languages",
        "machine translation",
        "street names",
        "bilingual children",
        "proverbs",
    ),
    "wildlife": (
        "song birds",
        "honey bees",
        "river otters",
        "forest fungi",
        "grey wolves",
        "migrating geese",
        "night moths",
        "wild goats",
    ),
}
"""Field of research -> what its papers are about."""

SCHOOLS: dict[str, tuple[str, ...]] = {
    "neural": ("deep neural networks", "learned embeddings", "attention layers", "neural representation learning"),
    "survey": ("field interviews", "household surveys", "focus groups", "questionnaire panels"),
    "rules": ("hand-written rules", "expert systems", "decision tables", "logic programs"),
}
"""School of method -> phrases that show it in the title of a cited paper."""

CITED_LEADS = (
    "A primer on",
    "Foundations of",
    "Advances in",
    "Lessons from",
    "A practical guide to",
    "The case for",
    "Ten open problems in",
    "Scaling up",
)

CITED_TAILS = (
    "for noisy data",
    "with small samples",
    "under time pressure",
    "across regions",
    "beyond the lab",
    "from first principles",
    "at low cost",
    "for busy teams",
    "with missing values",
    "over many years",
)

PAPER_TITLES = (
    "Measuring {subject} {place}",
    "The hidden cost of {subject} {place}",
    "A second look at {subject} {place}",
    "Counting {subject} {place}",
    "What drives {subject} {place}",
    "Ten years of {subject} {place}",
    "The limits of {subject} {place}",
    "Forecasting {subject} {place}",
    "Early signs of change in {subject} {place}",
    "Comparing {subject} {place}",
    "Errors in records of {subject} {place}",
    "Open data on {subject} {place}",
)

PAPER_ABSTRACTS = (
    "We study {subject} {place} over {months} months and report how the records differ from earlier figures.",
    "This paper describes {subject} {place}. We collected {months} months of notes and discuss what they leave open.",
    "Little is known about {subject} {place}. Our records of {months} months show a steady and uneven pattern.",
    "We revisit {subject} {place} with records of {months} months and explain where earlier work went wrong.",
)

# News ----------------------------------------------------------------------------------------------------------

SUBJECT_KINDS = (
    "free",
    "floating",
    "silent",
    "mobile",
    "evening",
    "shared",
    "wooden",
    "weekend",
    "underground",
    "winter",
    "solar",
    "tiny",
    "historic",
    "hidden",
    "robot",
    "community",
    "electric",
    "vegan",
    "paper",
    "borrowed",
)

SUBJECT_THINGS = (
    "library",
    "bakery",
    "market",
    "bus line",
    "museum",
    "orchestra",
    "bike lane",
    "playground",
    "bookshop",
    "swimming pool",
    "choir",
    "cinema",
    "repair shop",
    "radio station",
    "school kitchen",
    "chess club",
    "clinic",
    "post office",
    "theatre",
    "laundry",
)

NEWS_FRAMES = (
    "Visitors {place} lined up this week as the {subject} opened its doors. {detail}",
    "A long argument {place} ended on {day} with a vote to keep the {subject}. {detail}",
    "Nobody {place} expected the {subject} to last beyond its first month. {detail}",
    "After {years} years of planning, the {subject} {place} is finally ready. {detail}",
    "The council met on {day} to decide what becomes of the {subject} {place}. {detail}",
    "Volunteers {place} spent {years} years building the {subject} from spare parts. {detail}",
)

NEWS_DETAILS = (
    "Organisers say the costs stayed low and that more than two hundred people have signed up.",
    "Neighbours are split, and a second meeting is planned before the end of the season.",
    "Some call it a waste of money, while others already visit every single day.",
    "A report found that prices nearby fell and that young families came back.",
    "The mayor promised to visit and to publish all figures by early spring.",
    "Supporters hope that other towns will copy the idea before next year.",
    "Critics worry about noise, but a first count of complaints found only three.",
    "Two schools have asked to take part, and a waiting list is growing.",
)

HEADLINE_FRAMES = {
    "harbour": "Why the {subject} is worth a detour",
    "mountain": "Five things to know about the {subject}",
    "city": "{SUBJECT}: the story so far",
    "desert": "Is the {subject} good news for everyone?",
    "farm": "in praise of the {subject}, a quiet local hero",
}
"""Group -> how its people word a headline."""

HEADLINE_ENDINGS = {
    "plain": "",
    "guide": " | a short guide",
    "place": " | live {place}",
    "opinion": " | an honest opinion",
    "weekend": " | from our weekend edition",
}
"""Habit of one person -> what she puts behind her headlines."""

# Scholarly titles ----------------------------------------------------------------------------------------------

SYSTEM_NAMES = (
    "ORBIT",
    "LUMEN",
    "CEDAR",
    "PRISM",
    "HARBOR",
    "QUILT",
    "RAVEN",
    "SONAR",
    "TULIP",
    "VIOLA",
    "WILLOW",
    "ZEPHYR",
    "AMBER",
    "BISON",
    "COMET",
    "DELTA",
)

METHODS = (
    "contrastive learning",
    "rule mining",
    "active sampling",
    "tree search",
    "sparse coding",
    "graph matching",
    "curriculum training",
    "matrix factoring",
    "prompt tuning",
    "ensemble voting",
    "kernel smoothing",
    "self training",
)

PROBLEMS = (
    "crop forecasts",
    "speech tagging",
    "traffic counting",
    "music search",
    "face matching",
    "bug triage",
    "map drawing",
    "price prediction",
    "image captions",
    "spam filtering",
    "weather alerts",
    "text summaries",
    "route planning",
    "tumour detection",
)

SCHOLARLY_FRAMES = (
    "This work applies {method} to {problem}. Our system, {name}, was tried {place} against {count} baselines and the "
    "results are reported in full.",
    "We present {name}, which brings {method} to {problem}. A trial {place} with {count} people shows where it helps "
    "and where it fails.",
    "Progress in {problem} has slowed. We test {method} in a system called {name}, collect {count} cases {place}, and "
    "discuss the errors.",
    "Can {method} be used for {problem}? With {name} we ran {count} experiments {place} and measured accuracy, cost "
    "and stability.",
)

SCHOLARLY_TITLES = {
    "harbour": "{name}: {method} for {problem}",
    "mountain": "Towards practical {method} for {problem}",
    "city": "On the limits of {method} in {problem}",
    "desert": "Does {method} really help {problem}?",
    "farm": "{Problem} revisited: lessons learned from {method}",
}
"""Group -> how its people word the title of a paper."""

SCHOLARLY_ENDINGS = {
    "plain": "",
    "place": " - a trial {place}",
    "replication": " - a replication study",
    "abstract": " - extended abstract",
    "data": " - with open data",
}
"""Habit of one person -> what she puts behind her titles."""

# Replies -------------------------------------------------------------------------------------------------------

THINGS = (
    "ladder",
    "tent",
    "projector",
    "cake tin",
    "guitar",
    "spare key",
    "wheelbarrow",
    "map",
    "camera",
    "sewing machine",
    "chess set",
    "blanket",
    "lantern",
    "first-aid box",
    "picnic basket",
    "tool box",
    "coffee pot",
    "microphone",
    "bicycle pump",
    "puppet stage",
)

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

REQUEST_FRAMES = (
    "Hello, could you bring the {thing} on {day}? We meet {place} at {hour} o'clock. {reason}",
    "A small favour: may I borrow the {thing} on {day}? I will be {place} from {hour} o'clock. {reason}",
    "Do you still have the {thing}? We need it {place} on {day} before {hour} o'clock. {reason}",
)

REASONS = (
    "Ours broke last week and the shop is closed.",
    "My sister promised one but forgot about it.",
    "There will be twelve of us and only one car.",
    "It would save us a long drive to town.",
    "The children have been asking for it all week.",
    "I can return it the very next morning.",
)

REPLY_FRAMES = {
    "harbour": "Dear friend, I shall gladly bring the {thing} on {day}.",
    "mountain": "Yes: {thing}, {day}.",
    "city": "sure thing, the {thing} is all yours on {day}, yay",
    "desert": "Oh dear, I do hope the {thing} is not lost by {day}.",
    "farm": "Only if the {thing} is back right after {day}!",
}
"""Group -> how its people answer a request."""

REPLY_ENDINGS = {
    "plain": "",
    "wishes": " With my best wishes.",
    "place": " See you {place}.",
    "call": " Please call me first.",
    "hurry": " There is no hurry at all.",
}
"""Habit of one person -> how she ends her replies."""
