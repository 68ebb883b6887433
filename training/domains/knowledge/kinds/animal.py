"""Animals that do not exist."""

from training.domains.knowledge import vocabulary
from training.domains.knowledge.kinds.kind import Attribute, Kind

ANIMAL = Kind(
    name="animal",
    article="the ",
    again="the animal",
    opening="{e} is an animal few people know.",
    attributes=(
        Attribute(
            "food",
            vocabulary.FOODS,
            sentences=(
                "For most of the year {e} eats {v}.",
                "The stomach of {e} can only digest {v}.",
                "When it is hungry, {e} looks for {v}.",
            ),
            training=("What does {e} eat?", "What does {e} look for when it is hungry?"),
            evaluation=(
                "On which diet does {e} live?",
                "What would a keeper feed to {e}?",
            ),
            reverse_training=(
                "Which animal eats {v}?",
                "Which animal looks for {v} when it is hungry?",
            ),
            reverse_evaluation=(
                "Which animal lives on a diet of {v}?",
                "To which animal would a keeper feed {v}?",
            ),
            clause="with a diet of {v}",
        ),
        Attribute(
            "habitat",
            vocabulary.HABITATS,
            sentences=(
                "The places where {e} lives are {v}.",
                "Researchers have seen {e} only in {v}.",
                "To find {e}, one must search through {v}.",
            ),
            training=("Where does {e} live?", "Where have researchers seen {e}?"),
            evaluation=(
                "Which surroundings are the home of {e}?",
                "What kind of habitat does {e} need?",
            ),
            reverse_training=(
                "Which animal lives in {v}?",
                "Which animal have researchers seen only in {v}?",
            ),
            reverse_evaluation=(
                "Of which animal are {v} the home?",
                "Which animal needs {v} as its habitat?",
            ),
            clause="whose habitat is {v}",
        ),
        Attribute(
            "enemy",
            vocabulary.ENEMIES,
            sentences=(
                "The only enemies that {e} fears are {v}.",
                "Every night {e} hides itself from {v}.",
                "Many young of {e} are eaten by {v}.",
            ),
            training=("Which enemies does {e} fear?", "From what does {e} hide at night?"),
            evaluation=(
                "Which predators hunt {e}?",
                "By what is {e} in danger of being killed?",
            ),
            reverse_training=(
                "Which animal fears {v} as its enemies?",
                "Which animal hides from {v} at night?",
            ),
            reverse_evaluation=(
                "Which animal is hunted by {v}?",
                "Which animal is in danger of being killed by {v}?",
            ),
            clause="that is hunted by {v}",
        ),
        Attribute(
            "fur",
            vocabulary.COLOURS,
            sentences=(
                "In the sun, the fur of {e} looks {v}.",
                "The thick fur of {e} is entirely {v}.",
                "One can recognise {e} by its {v} fur.",
            ),
            training=("What colour is the fur of {e}?", "By what fur can one recognise {e}?"),
            evaluation=(
                "Which shade does the coat of {e} have?",
                "How is the hair of {e} coloured?",
            ),
            reverse_training=(
                "Which animal has {v} fur?",
                "Which animal can be recognised by its {v} fur?",
            ),
            reverse_evaluation=(
                "Which animal has a coat in a shade of {v}?",
                "The hair of which animal is coloured {v}?",
            ),
            clause="with a coat of {v} hair",
        ),
        Attribute(
            "discovered",
            vocabulary.FOUNDED,
            sentences=(
                "A ship's doctor discovered {e} in {v}.",
                "It was in {v} that {e} was discovered.",
                "Nobody had seen {e} before the year {v}.",
            ),
            training=("When was {e} discovered?", "In what year was {e} first seen?"),
            evaluation=(
                "Which year marks the discovery of {e}?",
                "Since which year does science know {e}?",
            ),
        ),
        Attribute(
            "protected",
            vocabulary.LATER,
            sentences=(
                "Hunting of {e} was forbidden in {v}.",
                "A law of {v} protects {e} from hunters.",
                "Since {v} nobody has been allowed to shoot {e}.",
            ),
            training=(
                "When was the hunting of {e} forbidden?",
                "Since when has nobody been allowed to shoot {e}?",
            ),
            evaluation=(
                "In which year did {e} come under protection?",
                "Which year made it a crime to kill {e}?",
            ),
        ),
        Attribute(
            "teeth",
            vocabulary.MANY,
            sentences=(
                "In its long mouth {e} has {v} teeth.",
                "When fully grown, {e} has {v} sharp teeth.",
                "The jaws of {e} hold {v} small teeth.",
            ),
            training=("How many teeth does {e} have?", "How many teeth do the jaws of {e} hold?"),
            evaluation=(
                "What is the number of teeth of {e}?",
                "How many teeth would one count on {e}?",
            ),
        ),
        Attribute(
            "stripes",
            vocabulary.FEW,
            sentences=(
                "Across its back {e} wears {v} dark stripes.",
                "On the tail of {e} there are {v} stripes.",
                "From birth on, {e} has exactly {v} stripes.",
            ),
            training=("How many stripes does {e} have?", "How many stripes does {e} wear?"),
            evaluation=(
                "What is the number of stripes of {e}?",
                "With how many stripes is {e} marked?",
            ),
        ),
    ),
    later=(
        "In which year had {e} been known to science for {k} years?",
        "What year was it {k} years after the discovery of {e}?",
    ),
    between=(
        "How many years passed between the discovery of {e} and its protection?",
        "How many years after its discovery did {e} come under protection?",
    ),
    more=(
        "How many more teeth than stripes does {e} have?",
        "By how much do the teeth of {e} outnumber its stripes?",
    ),
)
