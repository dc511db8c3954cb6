"""What questions of several tasks are about."""

from __future__ import annotations

from benchmarks.tasks.task import Split, split_of

TOPICS = tuple(
    """
    volcano, glacier, rainbow, magnet, compass, telescope, microscope, thermometer, barometer, battery, engine, bicycle,
    submarine, helicopter, satellite, rocket, comet, planet, galaxy, eclipse, tornado, hurricane, earthquake, tsunami,
    desert, island, peninsula, waterfall, canyon, coral reef, swamp, rainforest, mountain range, lighthouse, bridge,
    tunnel, castle, pyramid, cathedral, skyscraper, library, museum, hospital, orchestra, violin, piano, trumpet, drum,
    guitar, opera, ballet, poem, novel, newspaper, dictionary, encyclopedia, calendar, clock, sundial, hourglass,
    printing press, typewriter, camera, radio, television, telephone, computer, keyboard, robot, laser, transistor,
    lens, mirror, prism, pendulum, lever, pulley, screw, wedge, windmill, watermill, dam, solar panel, turbine,
    generator, nuclear reactor, chemical reaction, molecule, atom, crystal, diamond, fossil, dinosaur, mammoth, whale,
    dolphin, shark, octopus, jellyfish, starfish, penguin, ostrich, eagle, owl, hummingbird, bat, elephant, giraffe,
    kangaroo, koala, polar bear, wolf, fox, hedgehog, beaver, otter, tortoise, crocodile, chameleon, frog, salamander,
    butterfly, honeybee, ant colony, spider, scorpion, earthworm, mushroom, fern, cactus, sunflower, oak tree, bamboo,
    seed, root, leaf, flower, fruit, vaccine, virus, bacterium, antibiotic, heart, lung, kidney, brain, skeleton,
    muscle, nerve, eye, ear, tooth, vitamin, protein, recipe, loaf of bread, cheese, pancake, market, bank, coin,
    tax, budget, contract, election, parliament, constitution, court, treaty, passport, map, border, festival, wedding,
    birthday, marathon, chess game, puzzle, kite, balloon, umbrella, raincoat, tent, campfire, garden, greenhouse,
    farm, harvest, tractor, railway, airport, harbour, canal, ferry, anchor, sailing boat, parachute, traffic light
    """.replace("\n", " ")
    .strip()
    .split(", ")
)


def topics_of(split: Split) -> list[str]:
    """The topics of a split, which no prompt of another split is about."""
    return [topic for topic in (topic.strip() for topic in TOPICS) if split_of(topic) == split]


def with_article(topic: str) -> str:
    return f"{'an' if topic[0] in 'aeiou' else 'a'} {topic}"
