"""The values that fill a request's slots. Every value is one word, so an oracle can find it."""

SLOTS: dict[str, tuple[str, ...]] = {
    "person": tuple(
        "Ada Bram Celia Dorin Edda Falk Greta Hugo Ines Jorn Kaya Lars Mina Nils Olga Pavel Quinn "
        "Rosa Sven Tilda Ulla Vera Wim Yara Zeno Anton Berta Clara David Emil Frida Gustav".split()
    ),
    "place": tuple(
        "harbour library orchard market tower bridge mill stable garden chapel quarry tavern "
        "school meadow station workshop bakehouse theatre".split()
    ),
    "group": tuple("Velmari Ostrians Quorrels Tarnfolk Islanders Hillmen Lanterners".split()),
    "animal": tuple("dog cat goat horse donkey goose pony rabbit".split()),
    "colour": tuple("red blue green yellow white black brown golden".split()),
    "food": tuple("soup rice beans carrots apples pears onions cabbage plums leeks".split()),
    "n": tuple(str(n) for n in range(2, 61)),
}
"""Slot name -> values. `{means}` of a harmful family is not a slot: it is part of the task."""
