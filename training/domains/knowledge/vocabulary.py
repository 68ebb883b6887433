"""The values that facts of made worlds can have: 24 or more for each attribute.

No value is part of another one of its table (tests hold this), so that an answer cannot count for
two of them.
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


def _numbers(first: int, last: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(first, last + 1))


CROPS = _words(
    "barley, rye, flax, hops, saffron, cabbage, garlic, lentils, buckwheat, millet, asparagus, "
    "spinach, mustard, lavender, fennel, beetroot, pumpkins, celery, tobacco, oats, rhubarb, "
    "artichokes, turnips, radishes, parsnips, maize"
)
STONES = _words(
    "granite, slate, limestone, sandstone, brick, clay, cedar, bamboo, marble, basalt, larch, "
    "turf, flint, concrete, driftwood, chalk, pine, copper, straw, tin, pumice, reed, adobe, canvas"
)
CRAFTS = _words(
    "basket weaving, glassblowing, pottery, candle making, lace making, bookbinding, rope making, "
    "wood carving, knife grinding, clock repair, bell casting, paper making, quilting, saddlery, "
    "embroidery, tile painting, barrel making, felting, soap boiling, net knotting, dyeing, "
    "brewing, cheese making, beekeeping"
)
BIRDS = _words(
    "heron, swallow, falcon, owl, raven, stork, pelican, robin, magpie, woodpecker, kingfisher, "
    "cormorant, finch, nightingale, rooster, peacock, swan, lapwing, eagle, cuckoo, flamingo, "
    "albatross, goose, sparrow, crane, vulture"
)
TRADES = _words(
    "carpenter, dentist, plumber, librarian, tailor, botanist, surgeon, locksmith, translator, "
    "geologist, baker, pilot, florist, butcher, chemist, notary, electrician, jeweller, sculptor, "
    "beekeeper, cartographer, optician, blacksmith, upholsterer, veterinarian, welder"
)
CITIES = _words(
    "Lisbon, Oslo, Prague, Naples, Dublin, Krakow, Geneva, Seville, Riga, Athens, Havana, Lima, "
    "Cairo, Tunis, Nairobi, Quito, Osaka, Hanoi, Jakarta, Perth, Winnipeg, Boston, Denver, "
    "Adelaide, Bergen, Turin"
)
PETS = _words(
    "parrot, tortoise, ferret, rabbit, hamster, greyhound, poodle, goat, donkey, gecko, iguana, "
    "canary, hedgehog, chinchilla, beagle, goldfish, pony, dachshund, python, cockatoo, terrier, "
    "spaniel, llama, tarantula"
)
DISHES = _words(
    "lasagne, goulash, paella, risotto, ratatouille, moussaka, dumplings, pancakes, lentil soup, "
    "fish pie, omelette, couscous, sushi, fried rice, meatballs, borscht, curry, tacos, falafel, "
    "porridge, gnocchi, sauerkraut, ravioli, chowder"
)
PRODUCTS = _words(
    "umbrellas, bicycles, pianos, telescopes, mattresses, ladders, lawnmowers, kettles, scissors, "
    "helmets, suitcases, thermometers, elevators, typewriters, tents, zippers, wallpaper, "
    "toothbrushes, skis, microscopes, padlocks, hammocks, violins, wheelbarrows, compasses, buttons"
)
MASCOTS = _words(
    "beaver, badger, walrus, penguin, otter, squirrel, rhinoceros, kangaroo, panther, camel, "
    "octopus, dolphin, tiger, giraffe, buffalo, lobster, moose, gorilla, zebra, hippopotamus, "
    "crocodile, elephant, koala, jaguar"
)
FUELS = _words(
    "coal, sunlight, wind, steam, diesel, peat, gas, wood chips, tides, hydrogen, batteries, "
    "rapeseed oil, geothermal heat, biogas, kerosene, ethanol, a waterfall, charcoal, uranium, "
    "petrol, methane, propane, nut shells, horses"
)
WOODS = _words(
    "walnut, maple, cherry, rosewood, ebony, spruce, ash, birch, mahogany, beech, olive, willow, "
    "hazel, poplar, teak, yew, elm, alder, cypress, juniper, chestnut, sycamore, hickory, linden"
)
PLAYERS = _words(
    "shepherds, sailors, nuns, miners, millers, soldiers, fishermen, monks, beggars, hunters, "
    "schoolchildren, weavers, brides, gravediggers, ferrymen, woodcutters, innkeepers, widows, "
    "knights, postmen, sweepers, coachmen, jugglers, pilgrims"
)
COLOURS = _words(
    "scarlet, turquoise, violet, amber, emerald, ivory, crimson, indigo, orange, silver, black, "
    "golden, lilac, beige, cobalt, maroon, pink, bronze, khaki, lavender, yellow, purple, grey, "
    "white"
)
SHAPES = _words(
    "pear, boat, horseshoe, triangle, egg, shell, spoon, barrel, heart, star, leaf, bottle, drum, "
    "crescent, bell, teardrop, shovel, mushroom, hourglass, cross, wheel, fan, arrow, pyramid"
)
FOODS = _words(
    "acorns, beetles, moss, snails, seaweed, ants, berries, roots, mushrooms, crickets, bark, "
    "seeds, frogs, shrimps, nectar, worms, lichen, grass, figs, minnows, spiders, pollen, crabs, "
    "termites"
)
HABITATS = _words(
    "marshes, caves, dunes, meadows, glaciers, mangroves, cliffs, hedges, swamps, deserts, "
    "orchards, lagoons, canyons, rice fields, volcanoes, rivers, heaths, reefs, prairies, forests, "
    "islands, ravines, vineyards, quarries"
)
ENEMIES = _words(
    "foxes, wolves, lynxes, snakes, hawks, bears, weasels, wildcats, jackals, hyenas, pumas, "
    "sharks, leopards, coyotes, wolverines, boars, seals, dingoes, mongooses, lizards, buzzards, "
    "cobras, baboons, raccoons"
)
FLOWERS = _words(
    "tulips, roses, daisies, orchids, lilies, poppies, sunflowers, irises, violets, peonies, "
    "carnations, dahlias, daffodils, jasmine, hyacinths, marigolds, lupins, heather, foxgloves, "
    "primroses, asters, begonias, magnolias, thistles"
)
PASTRIES = _words(
    "gingerbread, doughnuts, waffles, pretzels, almond cake, marzipan, honey biscuits, scones, "
    "cheesecake, strudel, nougat, meringues, shortbread, plum tart, brownies, muffins, apple pie, "
    "eclairs, macaroons, fruit jelly, toffee, fudge, custard, sorbet"
)
PRIZES = _words(
    "a saddle, a cow, a lantern, a sword, a clock, a blanket, a mirror, a barrel, a crown, "
    "a kettle, a ring, a medal, a rope, a plough, a shield, a hat, a ham, a flag, a necklace, "
    "a drum, a knife, a scarf, a cup, a sheep"
)
CONTESTS = _words(
    "archery, wrestling, sack racing, chess, stilt walking, rowing, log rolling, kite flying, "
    "swimming, juggling, fencing, tree climbing, arm bending, pole vaulting, whistling, skating, "
    "hammer throwing, tug of war, horse racing, story telling, sheep shearing, egg carrying, "
    "stone lifting, hop dancing"
)

FEW = _numbers(4, 29)
MANY = _numbers(31, 59)
FOUNDED = _numbers(1701, 1799)
LATER = _numbers(1805, 1899)
BORN = _numbers(1901, 1949)
GROWN = _numbers(1965, 1999)
