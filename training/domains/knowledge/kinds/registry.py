"""All kinds of things, in the order in which a world has them."""

from training.domains.knowledge.kinds.animal import ANIMAL
from training.domains.knowledge.kinds.company import COMPANY
from training.domains.knowledge.kinds.festival import FESTIVAL
from training.domains.knowledge.kinds.instrument import INSTRUMENT
from training.domains.knowledge.kinds.kind import Kind
from training.domains.knowledge.kinds.person import PERSON
from training.domains.knowledge.kinds.village import VILLAGE

KINDS: tuple[Kind, ...] = (VILLAGE, PERSON, COMPANY, INSTRUMENT, ANIMAL, FESTIVAL)
