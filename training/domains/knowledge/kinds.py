"""What made worlds consist of: the kinds of things, their attributes, and every wording.

In the texts, {e} is the thing (its name, "the village", "the village that grows rye"), {v} the
value of the attribute. Evaluation wordings are never trained on, nor shown in a prompt; the
sentences and the training wordings are.
"""

from __future__ import annotations

from dataclasses import dataclass

from training.domains.knowledge import vocabulary


@dataclass(frozen=True)
class Attribute:
    """`sentences` state the fact, `training` and `evaluation` ask for the value. Where the thing
    can be asked for by the value, `clause` goes on after "which village" and "the village that";
    the two `asked_by` are questions for training."""

    name: str
    values: tuple[str, ...]
    sentences: tuple[str, str, str]
    training: tuple[str, str]
    evaluation: tuple[str, str]
    reverse_training: tuple[str, ...] = ()
    reverse_evaluation: tuple[str, ...] = ()
    clause: str = ""


@dataclass(frozen=True)
class Kind:
    """Eight attributes: four of words, then two years, the earlier one first, then two numbers,
    the larger one first. `article` is what stands before a name; the derived questions ask for the
    first year plus {k}, for the years between, and for the difference of the numbers."""

    name: str
    article: str
    # what else a passage calls it, if anything
    again: str
    opening: str
    attributes: tuple[Attribute, ...]
    later: tuple[str, str]
    between: tuple[str, str]
    more: tuple[str, str]

    @property
    def words(self) -> tuple[Attribute, ...]:
        return self.attributes[:4]

    @property
    def years(self) -> tuple[Attribute, Attribute]:
        return self.attributes[4], self.attributes[5]

    @property
    def numbers(self) -> tuple[Attribute, Attribute]:
        return self.attributes[6], self.attributes[7]


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

KINDS: tuple[Kind, ...] = (VILLAGE, PERSON)
