"""People who do not exist."""

from training.domains.knowledge import vocabulary
from training.domains.knowledge.kinds.kind import Attribute, Kind

PERSON = Kind(
    name="person",
    article="",
    again="",
    opening="This is about a woman named {e}.",
    attributes=(
        Attribute(
            "trade",
            vocabulary.TRADES,
            sentences=(
                "All her life {e} has worked as a {v}.",
                "By profession {e} is a very good {v}.",
                "People who need a {v} go to {e}.",
            ),
            training=("What does {e} work as?", "What is {e} by profession?"),
            evaluation=(
                "Which occupation does {e} have?",
                "How does {e} earn her living?",
            ),
            reverse_training=("Who works as a {v}?", "Who is a {v} by profession?"),
            reverse_evaluation=(
                "Which person has the occupation of {v}?",
                "Who earns her living as a {v}?",
            ),
            clause="whose occupation is {v}",
        ),
        Attribute(
            "city",
            vocabulary.CITIES,
            sentences=(
                "The family of {e} comes from {v}.",
                "As a child {e} lived in the city of {v}.",
                "The place where {e} was born is {v}.",
            ),
            training=("Where was {e} born?", "Which city does the family of {e} come from?"),
            evaluation=(
                "In what town did the life of {e} begin?",
                "What is the birthplace of {e}?",
            ),
            reverse_training=("Who was born in {v}?", "Whose family comes from {v}?"),
            reverse_evaluation=(
                "Which person has {v} as her birthplace?",
                "Whose life began in {v}?",
            ),
            clause="whose birthplace is {v}",
        ),
        Attribute(
            "pet",
            vocabulary.PETS,
            sentences=(
                "At home {e} is looking after a {v}.",
                "Since last winter {e} has kept a {v}.",
                "The pet that {e} lives with is a {v}.",
            ),
            training=("What pet does {e} keep?", "What animal is {e} looking after?"),
            evaluation=(
                "Which creature shares the home of {e}?",
                "What kind of animal does {e} own?",
            ),
            reverse_training=("Who keeps a {v} as a pet?", "Who is looking after a {v}?"),
            reverse_evaluation=("Who shares her home with a {v}?", "Which person owns a {v}?"),
            clause="who owns a {v}",
        ),
        Attribute(
            "dish",
            vocabulary.DISHES,
            sentences=(
                "On every Sunday {e} likes to cook {v}.",
                "The favourite dish of {e} has always been {v}.",
                "When friends visit, {e} serves them {v}.",
            ),
            training=("What is the favourite dish of {e}?", "What does {e} cook on Sundays?"),
            evaluation=(
                "Which meal does {e} like best?",
                "What food would most please {e}?",
            ),
            reverse_training=("Whose favourite dish is {v}?", "Who cooks {v} on Sundays?"),
            reverse_evaluation=(
                "Who likes {v} best as a meal?",
                "Which person would {v} please most?",
            ),
            clause="whose best-loved meal is {v}",
        ),
        Attribute(
            "born",
            vocabulary.BORN,
            sentences=(
                "It was in {v} that {e} was born.",
                "In the spring of {v}, {e} was born.",
                "The birth of {e} was in the year {v}.",
            ),
            training=("When was {e} born?", "What is the year of birth of {e}?"),
            evaluation=(
                "In which year did {e} come into the world?",
                "Which year does {e} give as her date of birth?",
            ),
        ),
        Attribute(
            "shop",
            vocabulary.GROWN,
            sentences=(
                "In {v} the shop of {e} opened its doors.",
                "The shop of {e} was opened in {v}.",
                "Since {v} there has been a shop run by {e}.",
            ),
            training=("When did {e} open her shop?", "Since when has {e} run a shop?"),
            evaluation=(
                "In which year did customers first enter the shop of {e}?",
                "Which year did the shop of {e} start?",
            ),
        ),
        Attribute(
            "clocks",
            vocabulary.MANY,
            sentences=(
                "Over the years {e} has collected {v} clocks.",
                "The walls of {e} are covered with {v} clocks.",
                "Visitors can admire {v} clocks that {e} owns.",
            ),
            training=("How many clocks does {e} own?", "How many clocks has {e} collected?"),
            evaluation=(
                "What is the number of clocks in the house of {e}?",
                "How many clocks belong to {e}?",
            ),
        ),
        Attribute(
            "cousins",
            vocabulary.FEW,
            sentences=(
                "Every summer {e} invites all her {v} cousins.",
                "The cousins of {e} are {v} in number.",
                "Among her relatives {e} counts {v} cousins.",
            ),
            training=("How many cousins does {e} have?", "How many cousins does {e} invite?"),
            evaluation=(
                "What is the number of cousins in the family of {e}?",
                "How many cousins is {e} related to?",
            ),
        ),
    ),
    later=(
        "In which year did {e} turn {k}?",
        "What year was it when {e} reached the age of {k}?",
    ),
    between=(
        "How old was {e} when her shop started?",
        "How many years after her birth did {e} start her shop?",
    ),
    more=(
        "How many more clocks than cousins does {e} have?",
        "By how much do the clocks of {e} outnumber her cousins?",
    ),
)
