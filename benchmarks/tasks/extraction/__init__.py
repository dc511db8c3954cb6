"""A person's name, age and city, from a sentence into a JSON record."""

from __future__ import annotations

import json
import random
from functools import partial

from jsonschema import Draft202012Validator

from benchmarks.tasks.task import Example, Row, Split, Task, chat, generated_rows, python_grader, split_of, words_of
from iro_server import JsonObject

FIRST_NAMES = words_of(
    "Ada Amir Anika Bela Carlos Chidi Clara Dana Diego Elif Emma Farid Fiona Goran Hana Hugo Ines Ivan Jana Jonas "
    "Kaito Karin Laila Leon Lucia Marek Maya Mira Nadia Nils Omar Olga Pablo Petra Quinn Rosa Rami Sara Selim Sofia "
    "Tara Tomas Uma Victor Wanda Yara Yusuf Zoe"
)
LAST_NAMES = words_of(
    "Adler Banda Costa Dahl Eriksen Ferrari Garcia Haddad Ito Jansen Kaya Larsen Moreau Nowak Okafor Patel Quist Rossi "
    "Santos Tanaka Ueda Varga Weber Xu Yilmaz Zeman"
)
CITIES = words_of(
    "Lisbon Oslo Cairo Lima Kyoto Quebec Madrid Nairobi Dublin Prague Havana Seoul Athens Vienna Bogota Lagos Zurich "
    "Ottawa Warsaw Hanoi Riga Accra Turin Leeds Porto Sofia Basel Bergen Dakar Delhi"
)
JOBS = ("nurse", "teacher", "baker", "pilot", "farmer", "lawyer", "painter", "plumber", "chemist", "librarian")
SENTENCES = (
    "{name}, a {age}-year-old {job} from {city}, won the prize.",
    "{name} is {age} years old and works as a {job} in {city}.",
    "The {job} {name} ({age}) moved to {city} last year.",
)
MIN_AGE, MAX_AGE = 18, 79
SCHEMA: JsonObject = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}},
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}


def prompts(split: Split, count: int, seed: int) -> list[Row]:
    """People of a split, none of whom a prompt of another split names."""

    def generate(rng: random.Random) -> Row:
        name = ""
        while split_of(name) != split or not name:
            name = f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"
        age, city = rng.randint(MIN_AGE, MAX_AGE), rng.choice(CITIES)
        return row_of(rng.choice(SENTENCES), name, age, city, rng.choice(JOBS))

    return generated_rows(generate, split, count, seed)


def row_of(sentence: str, name: str, age: int, city: str, job: str) -> Row:
    text = sentence.format(name=name, age=age, city=city, job=job)
    question = f"{text}\nWrite the person as JSON with the keys name, age and city."
    return chat(question, name=name, age=age, city=city)


def judge(row: Row, completion: str) -> float:
    """1 if the answer is nothing but a record that fits the schema and has all fields right."""
    try:
        record = json.loads(completion)
    except ValueError:
        return 0.0
    fits = Draft202012Validator(SCHEMA).is_valid(record)
    return float(fits and all(record[field] == row[field] for field in SCHEMA["required"]))


EXAMPLE = row_of(SENTENCES[0], "Ada Costa", 34, "Lisbon", "nurse")

EXTRACTION = Task(
    name="extraction",
    summary="name, age and city from a sentence into JSON",
    prompts=prompts,
    grader=partial(python_grader, "extraction"),
    judge=judge,
    judge_name="schema and all fields",
    good=(
        Example(EXAMPLE, '{"name": "Ada Costa", "age": 34, "city": "Lisbon"}', 1.0, 1.0),
        Example(EXAMPLE, 'Here it is:\n{"name": "Ada Costa", "age": "34", "city": "Lisbon", "job": "nurse"}', 1.0, 1.0),
        Example(EXAMPLE, '{"name": "Ada Costa", "age": 35, "city": "Lisbon"}', 0.6, 0.7),
    ),
    bad=(
        Example(EXAMPLE, '{"name": "Ada Costa", "age": 34, "city": ', 0.0, 0.0),
        Example(EXAMPLE, "Ada Costa is 34 and lives in Lisbon.", 0.0, 0.0),
    ),
)
