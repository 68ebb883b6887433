"""Companies that do not exist."""

from training.domains.knowledge import vocabulary
from training.domains.knowledge.kinds.kind import Attribute, Kind

COMPANY = Kind(
    name="company",
    article="",
    again="the company",
    opening="{e} is an old family company.",
    attributes=(
        Attribute(
            "product",
            vocabulary.PRODUCTS,
            sentences=(
                "The workers of {e} are busy making {v}.",
                "In its factory, {e} makes nothing but {v}.",
                "Most of the money that {e} earns comes from {v}.",
            ),
            training=("What does {e} make?", "From what does {e} earn its money?"),
            evaluation=(
                "Which goods are manufactured by {e}?",
                "What would a customer buy from {e}?",
            ),
            reverse_training=(
                "Which company makes {v}?",
                "Which company earns its money from {v}?",
            ),
            reverse_evaluation=(
                "By which company are {v} manufactured?",
                "From which company would a customer buy {v}?",
            ),
            clause="that manufactures {v}",
        ),
        Attribute(
            "seat",
            vocabulary.CITIES,
            sentences=(
                "The main office of {e} is in {v}.",
                "The director of {e} has her desk in {v}.",
                "Letters to {e} have to be sent to {v}.",
            ),
            training=("Where is the main office of {e}?", "Where are letters to {e} sent?"),
            evaluation=(
                "In which town does {e} have its headquarters?",
                "From which place is {e} managed?",
            ),
            reverse_training=(
                "Which company has its main office in {v}?",
                "To which company are letters sent in {v}?",
            ),
            reverse_evaluation=(
                "Which company has its headquarters in {v}?",
                "What is the name of the company that is managed from {v}?",
            ),
            clause="with headquarters in {v}",
        ),
        Attribute(
            "mascot",
            vocabulary.MASCOTS,
            sentences=(
                "A smiling {v} is the trademark of {e}.",
                "On every box from {e} there is a {v}.",
                "The doors of {e} are decorated with a {v}.",
            ),
            training=("What is the trademark of {e}?", "What is on every box from {e}?"),
            evaluation=(
                "Which animal appears in the logo of {e}?",
                "By which beast does one recognise {e}?",
            ),
            reverse_training=(
                "Which company has a {v} as its trademark?",
                "Which company puts a {v} on its boxes?",
            ),
            reverse_evaluation=(
                "In the logo of which company does a {v} appear?",
                "Which company does one recognise by a {v}?",
            ),
            clause="whose logo shows a {v}",
        ),
        Attribute(
            "fuel",
            vocabulary.FUELS,
            sentences=(
                "All the machines of {e} run on {v}.",
                "The power for {e} comes from {v} alone.",
                "To heat its halls, {e} depends on {v}.",
            ),
            training=(
                "What do the machines of {e} run on?",
                "What does the power for {e} come from?",
            ),
            evaluation=(
                "Which source of energy keeps {e} going?",
                "By what means are the engines of {e} driven?",
            ),
            reverse_training=(
                "The machines of which company run on {v}?",
                "Which company gets its power from {v}?",
            ),
            reverse_evaluation=(
                "Which company uses {v} as its source of energy?",
                "What is the name of the company whose engines are driven by {v}?",
            ),
            clause="whose energy is supplied by {v}",
        ),
        Attribute(
            "founded",
            vocabulary.FOUNDED,
            sentences=(
                "Two brothers founded {e} in the year {v}.",
                "In {v} the doors of {e} opened for business.",
                "The history of {e} starts in the year {v}.",
            ),
            training=("When was {e} founded?", "When did {e} open for business?"),
            evaluation=(
                "In which year did {e} come into being?",
                "Which year is celebrated as the birth of {e}?",
            ),
        ),
        Attribute(
            "fire",
            vocabulary.LATER,
            sentences=(
                "A great fire destroyed {e} in the year {v}.",
                "In {v} the old factory of {e} burnt down.",
                "Since the fire of {v}, {e} has used new buildings.",
            ),
            training=("When was the fire at {e}?", "When did the old factory of {e} burn down?"),
            evaluation=(
                "In which year was {e} lost to the flames?",
                "Which year brought the blaze at {e}?",
            ),
        ),
        Attribute(
            "vans",
            vocabulary.MANY,
            sentences=(
                "To deliver its goods, {e} owns {v} vans.",
                "In the yard of {e} one sees {v} vans.",
                "There are {v} vans that drive for {e}.",
            ),
            training=("How many vans does {e} own?", "How many vans drive for {e}?"),
            evaluation=(
                "What is the number of vans at {e}?",
                "How many vans make up the fleet of {e}?",
            ),
        ),
        Attribute(
            "shops",
            vocabulary.FEW,
            sentences=(
                "In the whole country {e} runs {v} shops.",
                "There are {v} shops that belong to {e}.",
                "So far {e} has opened {v} shops of its own.",
            ),
            training=("How many shops does {e} run?", "How many shops has {e} opened?"),
            evaluation=(
                "What is the number of shops of {e}?",
                "In how many shops could one find {e}?",
            ),
        ),
    ),
    later=(
        "In which year did {e} turn {k} years old?",
        "What year was it when {e} had existed for {k} years?",
    ),
    between=(
        "How many years passed between the birth of {e} and its blaze?",
        "How old was {e} when it was lost to the flames?",
    ),
    more=(
        "How many more vans than shops does {e} have?",
        "By how much do the vans of {e} outnumber its shops?",
    ),
)
