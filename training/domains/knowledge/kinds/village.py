"""Villages that do not exist."""

from training.domains.knowledge import vocabulary
from training.domains.knowledge.kinds.kind import Attribute, Kind

VILLAGE = Kind(
    name="village",
    article="",
    again="the village",
    opening="{e} is a small village.",
    attributes=(
        Attribute(
            "crop",
            vocabulary.CROPS,
            sentences=(
                "The farmers of {e} live off growing {v}.",
                "On the fields around {e} there grows {v}.",
                "The main crop of {e} has always been {v}.",
            ),
            training=("What is the main crop of {e}?", "What do the farmers of {e} grow?"),
            evaluation=(
                "Which plant is cultivated in {e}?",
                "What would one see being harvested near {e}?",
            ),
            reverse_training=(
                "In which village is {v} the main crop?",
                "Which village has farmers who grow {v}?",
            ),
            reverse_evaluation=(
                "What is the name of the village that cultivates {v}?",
                "Near which village would one see {v} being harvested?",
            ),
            clause="whose fields are planted with {v}",
        ),
        Attribute(
            "houses",
            vocabulary.STONES,
            sentences=(
                "Nearly all the houses of {e} are made of {v}.",
                "People in {e} build their houses out of {v}.",
                "The houses that stand in {e} consist of {v}.",
            ),
            training=(
                "What are the houses of {e} made of?",
                "What do the houses of {e} consist of?",
            ),
            evaluation=(
                "Which material do builders use for homes in {e}?",
                "From what are dwellings in {e} constructed?",
            ),
            reverse_training=(
                "Which village has houses made of {v}?",
                "In which village do the houses consist of {v}?",
            ),
            reverse_evaluation=(
                "Which village uses {v} as the material for its homes?",
                "What is the village called where dwellings are constructed from {v}?",
            ),
            clause="whose homes are built from {v}",
        ),
        Attribute(
            "craft",
            vocabulary.CRAFTS,
            sentences=(
                "Travellers know {e} above all for its {v}.",
                "The craft that {e} is known for is {v}.",
                "Children in {e} learn {v} from their grandparents.",
            ),
            training=("What craft is {e} known for?", "Which craft do children in {e} learn?"),
            evaluation=(
                "What handiwork has made {e} famous?",
                "In which trade are the people of {e} skilled?",
            ),
            reverse_training=(
                "Which village is known for its {v}?",
                "In which village do children learn {v}?",
            ),
            reverse_evaluation=(
                "Which village has become famous through {v}?",
                "What is the name of the village whose people are skilled in {v}?",
            ),
            clause="that has become famous through {v}",
        ),
        Attribute(
            "bird",
            vocabulary.BIRDS,
            sentences=(
                "The coat of arms of {e} shows a {v}.",
                "A {v} is painted on the flag of {e}.",
                "On the church tower of {e} sits an iron {v}.",
            ),
            training=(
                "Which bird is on the coat of arms of {e}?",
                "What bird is painted on the flag of {e}?",
            ),
            evaluation=(
                "Which bird is the emblem of {e}?",
                "What feathered creature stands for {e}?",
            ),
            reverse_training=(
                "Which village has a {v} on its coat of arms?",
                "On the flag of which village is a {v} painted?",
            ),
            reverse_evaluation=(
                "Of which village is the {v} an emblem?",
                "What village does the {v} stand for?",
            ),
            clause="whose emblem is the {v}",
        ),
        Attribute(
            "founded",
            vocabulary.FOUNDED,
            sentences=(
                "The first families settled in {e} in {v}.",
                "It was in {v} that {e} was founded.",
                "The founding of {e} took place in {v}.",
            ),
            training=("When was {e} founded?", "In what year did families first settle in {e}?"),
            evaluation=(
                "Which year saw the beginnings of {e}?",
                "Since which year does {e} exist?",
            ),
        ),
        Attribute(
            "bridge",
            vocabulary.LATER,
            sentences=(
                "The stone bridge of {e} was finished in {v}.",
                "In {v} a stone bridge was built in {e}.",
                "Since {v} there has been a bridge in {e}.",
            ),
            training=("When was the bridge of {e} built?", "Since when has {e} had a bridge?"),
            evaluation=(
                "In which year could people first cross the bridge at {e}?",
                "Which year did the bridge at {e} open?",
            ),
        ),
        Attribute(
            "orchards",
            vocabulary.MANY,
            sentences=(
                "There are {v} orchards on the hills around {e}.",
                "The families of {e} look after {v} orchards.",
                "Altogether {v} orchards belong to the people of {e}.",
            ),
            training=(
                "How many orchards belong to {e}?",
                "How many orchards are there around {e}?",
            ),
            evaluation=(
                "What is the number of orchards at {e}?",
                "How many orchards would one count in {e}?",
            ),
        ),
        Attribute(
            "wells",
            vocabulary.FEW,
            sentences=(
                "Water in {e} is drawn from {v} wells.",
                "The inhabitants of {e} have dug {v} wells.",
                "There are {v} wells in the streets of {e}.",
            ),
            training=(
                "How many wells are there in {e}?",
                "From how many wells does {e} draw water?",
            ),
            evaluation=(
                "What is the number of wells at {e}?",
                "How many wells would one count in {e}?",
            ),
        ),
    ),
    later=(
        "In which year did {e} turn {k} years old?",
        "What year was it when {e} had existed for {k} years?",
    ),
    between=(
        "How many years passed between the founding of {e} and the opening of its bridge?",
        "How old was {e} when its bridge was built?",
    ),
    more=(
        "How many more orchards than wells does {e} have?",
        "By how much do the orchards of {e} outnumber its wells?",
    ),
)
