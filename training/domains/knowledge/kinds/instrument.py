"""Musical instruments that do not exist."""

from training.domains.knowledge import vocabulary
from training.domains.knowledge.kinds.kind import Attribute, Kind

INSTRUMENT = Kind(
    name="instrument",
    article="the ",
    again="the instrument",
    opening="{e} is a rare musical instrument.",
    attributes=(
        Attribute(
            "wood",
            vocabulary.WOODS,
            sentences=(
                "The body of {e} is carved from {v}.",
                "To build {e}, one needs planks of {v}.",
                "The wood that {e} consists of is {v}.",
            ),
            training=("What wood does {e} consist of?", "What is the body of {e} carved from?"),
            evaluation=(
                "Which tree supplies the timber for {e}?",
                "Out of which material do makers shape {e}?",
            ),
            reverse_training=(
                "Which instrument consists of {v}?",
                "The body of which instrument is carved from {v}?",
            ),
            reverse_evaluation=(
                "For which instrument is {v} the timber?",
                "What is the name of the instrument that makers shape out of {v}?",
            ),
            clause="whose timber is {v}",
        ),
        Attribute(
            "players",
            vocabulary.PLAYERS,
            sentences=(
                "In former times {e} was played by {v}.",
                "It is {v} who know how to play {e}.",
                "The music of {e} was loved most by {v}.",
            ),
            training=("Who played {e} in former times?", "Who knows how to play {e}?"),
            evaluation=(
                "Among which people was {e} a custom?",
                "Whose hands used to hold {e}?",
            ),
            reverse_training=(
                "Which instrument was played by {v} in former times?",
                "Which instrument do {v} know how to play?",
            ),
            reverse_evaluation=(
                "Which instrument was a custom among {v}?",
                "What is the name of the instrument that the hands of {v} used to hold?",
            ),
            clause="that was a custom among {v}",
        ),
        Attribute(
            "colour",
            vocabulary.COLOURS,
            sentences=(
                "The neck of {e} is always painted {v}.",
                "By tradition, {e} is covered in {v} paint.",
                "The colour that {e} must have is {v}.",
            ),
            training=("What colour is {e} painted?", "In what paint is {e} covered?"),
            evaluation=(
                "Which hue is typical of {e}?",
                "How is {e} coloured?",
            ),
            reverse_training=(
                "Which instrument is painted {v}?",
                "Which instrument is covered in {v} paint?",
            ),
            reverse_evaluation=(
                "Of which instrument is {v} the typical hue?",
                "What is the instrument that is coloured {v} called?",
            ),
            clause="whose typical hue is {v}",
        ),
        Attribute(
            "shape",
            vocabulary.SHAPES,
            sentences=(
                "Seen from above, {e} looks like a {v}.",
                "The form of {e} is that of a {v}.",
                "Children draw {e} in the form of a {v}.",
            ),
            training=("What does {e} look like?", "What is the form of {e}?"),
            evaluation=(
                "Which object does {e} resemble?",
                "To which thing is {e} similar in outline?",
            ),
            reverse_training=(
                "Which instrument looks like a {v}?",
                "Which instrument has the form of a {v}?",
            ),
            reverse_evaluation=(
                "Which instrument resembles a {v}?",
                "What is the instrument called that is similar to a {v} in outline?",
            ),
            clause="that resembles a {v}",
        ),
        Attribute(
            "invented",
            vocabulary.FOUNDED,
            sentences=(
                "A blind carpenter invented {e} in {v}.",
                "It was in {v} that {e} was invented.",
                "The first one of {e} was built in {v}.",
            ),
            training=("When was {e} invented?", "When was the first one of {e} built?"),
            evaluation=(
                "In which year did {e} first exist?",
                "Since which year does the world know {e}?",
            ),
        ),
        Attribute(
            "songbook",
            vocabulary.LATER,
            sentences=(
                "A book of music for {e} was printed in {v}.",
                "In {v} the first songbook for {e} was printed.",
                "Notes for {e} were not printed before {v}.",
            ),
            training=(
                "When was a book of music for {e} printed?",
                "When were notes for {e} printed first?",
            ),
            evaluation=(
                "In which year were songs for {e} published?",
                "Which year is given in the earliest publication for {e}?",
            ),
        ),
        Attribute(
            "strings",
            vocabulary.MANY,
            sentences=(
                "Over its bridge {e} has {v} thin strings.",
                "The sound of {e} comes from {v} strings.",
                "Players of {e} have to tune {v} strings.",
            ),
            training=("How many strings does {e} have?", "How many strings of {e} must be tuned?"),
            evaluation=(
                "What is the number of strings on {e}?",
                "With how many strings is {e} fitted?",
            ),
        ),
        Attribute(
            "keys",
            vocabulary.FEW,
            sentences=(
                "At its side {e} has {v} small keys.",
                "The fingers move {v} keys to play {e}.",
                "There are {v} keys of bone on {e}.",
            ),
            training=("How many keys does {e} have?", "How many keys are moved to play {e}?"),
            evaluation=(
                "What is the number of keys on {e}?",
                "With how many keys is {e} equipped?",
            ),
        ),
    ),
    later=(
        "In which year did {e} turn {k} years old?",
        "What year was it when {e} had existed for {k} years?",
    ),
    between=(
        "How many years passed from the invention of {e} to the first publication for it?",
        "How old was {e} when songs for it were first published?",
    ),
    more=(
        "How many more strings than keys are there on {e}?",
        "By how much do the strings of {e} outnumber its keys?",
    ),
)
