"""Festivals that do not exist."""

from training.domains.knowledge import vocabulary
from training.domains.knowledge.kinds.kind import Attribute, Kind

FESTIVAL = Kind(
    name="festival",
    article="the ",
    again="the festival",
    opening="{e} is a festival held every summer.",
    attributes=(
        Attribute(
            "flower",
            vocabulary.FLOWERS,
            sentences=(
                "On the morning of {e} girls pick {v}.",
                "For {e}, every window is decorated with {v}.",
                "Guests of {e} wear {v} in their hair.",
            ),
            training=(
                "What are windows decorated with for {e}?",
                "What do guests of {e} wear in their hair?",
            ),
            evaluation=(
                "Which flowers belong to {e}?",
                "What blossoms would one see at {e}?",
            ),
            reverse_training=(
                "For which festival are windows decorated with {v}?",
                "At which festival do guests wear {v} in their hair?",
            ),
            reverse_evaluation=(
                "To which festival do {v} belong as flowers?",
                "At which festival would one see the blossoms of {v}?",
            ),
            clause="whose flowers are {v}",
        ),
        Attribute(
            "pastry",
            vocabulary.PASTRIES,
            sentences=(
                "At noon on {e} everyone is given {v}.",
                "The bakers prepare {e} by making much {v}.",
                "Nobody goes home from {e} without eating {v}.",
            ),
            training=(
                "What is everyone given at noon on {e}?",
                "What do the bakers make for {e}?",
            ),
            evaluation=(
                "Which sweet food is served at {e}?",
                "What treat is traditional during {e}?",
            ),
            reverse_training=(
                "On which festival is everyone given {v} at noon?",
                "For which festival do the bakers make {v}?",
            ),
            reverse_evaluation=(
                "At which festival is {v} served as sweet food?",
                "During which festival is {v} a traditional treat?",
            ),
            clause="with {v} as its traditional treat",
        ),
        Attribute(
            "prize",
            vocabulary.PRIZES,
            sentences=(
                "The queen of {e} receives {v} as a gift.",
                "The winner of {e} may take home {v}.",
                "What one can win at {e} is {v}.",
            ),
            training=("What can one win at {e}?", "What does the queen of {e} receive?"),
            evaluation=(
                "What is the prize at {e}?",
                "Which reward is handed out during {e}?",
            ),
            reverse_training=(
                "At which festival can one win {v}?",
                "The queen of which festival receives {v}?",
            ),
            reverse_evaluation=(
                "At which festival is the prize {v}?",
                "During which festival is {v} handed out as a reward?",
            ),
            clause="where the reward is {v}",
        ),
        Attribute(
            "contest",
            vocabulary.CONTESTS,
            sentences=(
                "Young people at {e} compete in {v}.",
                "In the afternoon of {e} there is {v}.",
                "The loudest cheers at {e} are for {v}.",
            ),
            training=(
                "In what do young people compete at {e}?",
                "What is there in the afternoon of {e}?",
            ),
            evaluation=(
                "Which contest is held during {e}?",
                "At what sport does one have to be good to succeed at {e}?",
            ),
            reverse_training=(
                "At which festival do young people compete in {v}?",
                "In the afternoon of which festival is there {v}?",
            ),
            reverse_evaluation=(
                "During which festival is a contest of {v} held?",
                "To succeed at which festival does one have to be good at {v}?",
            ),
            clause="that has {v} as its contest",
        ),
        Attribute(
            "started",
            vocabulary.FOUNDED,
            sentences=(
                "A rich widow started {e} in {v}.",
                "It was in {v} that {e} was started.",
                "The first time {e} took place was in {v}.",
            ),
            training=("When was {e} started?", "When did {e} take place the first time?"),
            evaluation=(
                "In which year did the tradition of {e} begin?",
                "Since which year do people celebrate {e}?",
            ),
        ),
        Attribute(
            "song",
            vocabulary.LATER,
            sentences=(
                "A new song for {e} was written in {v}.",
                "In {v} a poet wrote the song of {e}.",
                "The song of {e} was first sung in {v}.",
            ),
            training=("When was the song of {e} written?", "When was the song of {e} first sung?"),
            evaluation=(
                "In which year did {e} get its anthem?",
                "Which year saw the creation of the anthem of {e}?",
            ),
        ),
        Attribute(
            "lanterns",
            vocabulary.MANY,
            sentences=(
                "In the evening of {e}, {v} lanterns are lit.",
                "The streets of {e} are lit by {v} lanterns.",
                "Those who prepare {e} hang up {v} lanterns.",
            ),
            training=(
                "How many lanterns are lit at {e}?",
                "How many lanterns are hung up for {e}?",
            ),
            evaluation=(
                "What is the number of lanterns at {e}?",
                "How many lanterns shine during {e}?",
            ),
        ),
        Attribute(
            "drummers",
            vocabulary.FEW,
            sentences=(
                "The procession of {e} is led by {v} drummers.",
                "In the music of {e} one hears {v} drummers.",
                "There are {v} drummers who open {e} at dawn.",
            ),
            training=(
                "How many drummers lead the procession of {e}?",
                "How many drummers open {e} at dawn?",
            ),
            evaluation=(
                "What is the number of drummers at {e}?",
                "How many drummers play during {e}?",
            ),
        ),
    ),
    later=(
        "In which year had people celebrated {e} for {k} years?",
        "What year was it {k} years after the tradition of {e} began?",
    ),
    between=(
        "How many years passed between the beginning of {e} and its anthem?",
        "How many years after its beginning did {e} get its anthem?",
    ),
    more=(
        "How many more lanterns than drummers are there at {e}?",
        "By how much do the lanterns of {e} outnumber its drummers?",
    ),
)
