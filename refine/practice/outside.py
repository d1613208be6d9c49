"""Ordinary questions from outside the practice world.

HELD_OUT_OUTSIDE is written by hand and only used for measuring; the others are trained on. Owns no
answers: the honest sentence that the model should say is in answers.py.
"""

import random
from collections.abc import Callable

from refine.practice.phrasings import PHRASINGS

HELD_OUT_OUTSIDE: tuple[str, ...] = (
    "What is the capital of France?",
    "Write a haiku about rain.",
    "Who painted the Mona Lisa?",
    "What is 17 times 23?",
    "How tall is Mount Everest?",
    "Translate 'good night' into Spanish.",
    "Write a Python function that reverses a list.",
    "What year did the Second World War end?",
    "Explain photosynthesis in one sentence.",
    "Summarise the plot of Hamlet.",
    "Hello",
    "Hi there, how are you doing today?",
    "Thanks, that was great!",
    "What's your name?",
    "Are you a robot?",
    "Tell me a fun fact about octopuses.",
    "Why is the sky blue?",
    "How many planets are there in the solar system?",
    "What is the square root of 144?",
    "Solve x^2 - 5x + 6 = 0.",
    "Recommend a good science fiction novel.",
    "What's the weather like in Tokyo?",
    "How do vaccines work?",
    "Give me a synonym for happy.",
    "What is the difference between TCP and UDP?",
    "SELECT name FROM users WHERE id = 3; what does this do?",
    "def f(x): return x + 1",
    "How do I install numpy with pip?",
    "Draft an email asking my manager for a day off.",
    "What are the symptoms of the flu?",
    "Who won the World Cup in 2018?",
    "Convert 100 Fahrenheit to Celsius.",
    "What does the word serendipity mean?",
    "Name three rivers in South America.",
    "Is a tomato a fruit or a vegetable?",
    "Compare electric cars and petrol cars.",
    "Quelle est la capitale de l'Allemagne ?",
    "¿Cómo se dice manzana en inglés?",
    "Wie spät ist es in Berlin?",
    "Qual è la ricetta della carbonara?",
    "日本の首都はどこですか?",
    "今天天气怎么样?",
    "Какой самый большой океан?",
    "ما هي عاصمة مصر؟",
    "Vad heter Sveriges kung?",
    "asdfghjkl qwertyuiop",
    "???",
    "xkcd 1234 zzz blorp",
    "🙂🙂🙂",
    "Lorem ipsum dolor sit amet, consectetur adipiscing elit.",
    "What is the meaning of life?",
    "Suggest a name for my new puppy.",
    "How long does it take to fly from London to New York?",
    "Explain the theory of relativity to a child.",
    "What is machine learning?",
    "Who was Cleopatra?",
    "Which is bigger, a proton or an electron?",
    "Write a SQL query that counts orders per customer.",
    "What is the boiling point of water at sea level?",
    "Continue the sequence: 2, 4, 8, 16",
    "Give me a slogan for a coffee shop.",
    "Which vitamins are in oranges?",
    "What should I watch on television tonight?",
    "Correct the grammar: she don't like apples.",
    "How is paper recycled?",
    "Who is the president of Brazil?",
)
"""Held out: at least sixty, in several languages, with code, maths, greetings and gibberish."""

TRAIN_OUTSIDE: tuple[str, ...] = (
    "What is the largest country in Africa?",
    "Who wrote Pride and Prejudice?",
    "Write a limerick about snow.",
    "Write a short essay on the French Revolution.",
    "What is 12 plus 30?",
    "What is 9 divided by 3?",
    "Compute the derivative of x^3 + 2x.",
    "Factor x^2 - 9.",
    "Translate 'thank you' into Italian.",
    "How do you say water in German?",
    "Good evening",
    "Hey",
    "Hello, who are you?",
    "Hi! What can you do?",
    "Thank you so much",
    "ok",
    "Goodbye",
    "Are you human?",
    "What model are you?",
    "Tell me something interesting about whales.",
    "Why do leaves change colour in autumn?",
    "How far is the moon?",
    "How old is the universe?",
    "What causes earthquakes?",
    "What is DNA?",
    "Define entropy.",
    "What is the opposite of brave?",
    "What is a synonym for large?",
    "Explain how a car engine works.",
    "Explain recursion.",
    "What is a neural network?",
    "What is the difference between a list and a tuple in Python?",
    "import os\nprint(os.getcwd())",
    "for i in range(10): print(i)",
    "console.log('hi') what does it print?",
    "git commit -m 'fix' fails, why?",
    "Write a JavaScript function that sums an array.",
    "Write a regular expression for dates.",
    "How can I update Windows?",
    "My laptop does not start, any ideas?",
    "Recommend a film for tonight.",
    "Recommend a restaurant in Rome.",
    "What is the weather in Madrid tomorrow?",
    "Who won the election in 2020?",
    "Who was Napoleon?",
    "When was Albert Einstein born?",
    "When did the Roman Empire fall?",
    "Which ocean is the deepest?",
    "Name four primary elements of the periodic table.",
    "List the prime numbers below 20.",
    "Convert 5 miles to kilometres.",
    "Convert 30 Celsius to Fahrenheit.",
    "What currency is used in Japan?",
    "What language do people speak in Brazil?",
    "Draft a cover letter for a marketing job.",
    "Draft a tweet about our new product.",
    "Summarise the following article for me.",
    "Proofread this sentence: their going home.",
    "What are the health benefits of green tea?",
    "What does a mortgage broker do?",
    "How does inflation affect savings?",
    "How do airplanes fly?",
    "How do computers store numbers?",
    "Is coffee bad for you?",
    "Is Pluto a planet?",
    "Can penguins fly?",
    "Do fish sleep?",
    "Should I buy or rent a flat?",
    "Which phone is better, this or that?",
    "Who is your favourite singer?",
    "Tell me about the history of jazz.",
    "Tell me about yourself.",
    "What is today's date?",
    "What time is it in Sydney?",
    "Bonjour, comment ça va ?",
    "Où se trouve la gare ?",
    "Combien coûte un billet pour Paris ?",
    "¿Dónde está la biblioteca?",
    "¿Qué hora es?",
    "Wo ist der nächste Bahnhof?",
    "Was ist die Hauptstadt von Spanien?",
    "Come ti chiami?",
    "Quanti anni hai?",
    "Hvor ligger Oslo?",
    "Hur mår du?",
    "Onde fica Lisboa?",
    "Gdzie jest Warszawa?",
    "東京の人口は?",
    "おはようございます",
    "你好,你是谁?",
    "中国的首都是哪里?",
    "Как тебя зовут?",
    "Сколько времени?",
    "كيف حالك؟",
    "שלום, מה שלומך?",
    "안녕하세요",
    "नमस्ते",
    "!!!",
    "...",
    "?",
    "a",
    "123456",
    "👍",
    "😂😂",
    "test test test",
    "lol",
    "foo bar baz",
    "The quick brown fox jumps over the lazy dog.",
    "To be, or not to be, that is the question.",
    "Once upon a time there was a princess.",
    "It is raining cats and dogs.",
    "My phone number has changed.",
    "The meeting is moved to Thursday at noon.",
    "Our sales grew by ten percent last quarter.",
    "The committee approved the new budget on Monday.",
    "Scientists have discovered a new kind of beetle in the rainforest.",
)

_PATTERNS = (
    "What is the {a} of {b}?",
    "Who invented the {a}?",
    "Who is the {a} of {b}?",
    "Why does {b} have a {a}?",
    "How many {a}s are there in {b}?",
    "Write a {f} about {b}.",
    "Write a {f} about a {a}.",
    "Explain the {a} in simple words.",
    "Translate '{a}' into {l}.",
    "How do you spell {a}?",
    "Tell me about {b}.",
    "Is {b} bigger than {b}?",
    "What does {a} mean in {l}?",
    "Compare {b} with {b}.",
    "What is {d} times {d}?",
    "What is {d} minus {d}?",
    "{d} + {d} = ?",
    "Solve for x: {d}x + {d} = {d}",
    "Name {d} facts about {b}.",
    "Which {a} is the best?",
    "When was the {a} of {b} built?",
    "Recommend a {a} in {b}.",
    "Give me a {f} for my {a}.",
    "The {a} in {b} is very old.",
    "I read about the {a} of {b} in the newspaper.",
    "{b} announced a new {a} today.",
    "print('{a}')",
    "SELECT {a} FROM {b};",
    "{a}, {a}, {a}",
    "Where can I see the {a} of {b}?",
    "How long is a {a}?",
    "What happens to a {a} in {b}?",
)
_A = tuple(
    "capital president population museum computer telephone galaxy molecule equation mountain "
    "volcano airport pizza camera keyboard novel symphony football bank tax engine hospital "
    "doctor vitamin dinosaur satellite language alphabet currency flag anthem economy climate "
    "university password website battery rocket violin theorem election constitution "
    "parliament cathedral pyramid railway bacteria hormone galaxy poem film actor".split()
)
_B = tuple(
    "Italy Spain China India Canada Mexico Peru Kenya Egypt Norway Poland Russia Turkey Chile "
    "Vietnam London Berlin Chicago Shanghai Jupiter Saturn Mars Google Shakespeare Mozart Newton "
    "Darwin Picasso Linux Java Europe Asia Antarctica California Texas Amazon Wikipedia".split()
)
_VERBS = tuple(
    "install update download compile translate calculate configure debug reboot photograph invest "
    "vote drive publish patent refactor upload encrypt graph vaccinate memorise subscribe order "
    "explain compare measure invent design program cancel review sort count book test".split()
)
_GOALS = ("a {a}", "the {a}", "the {a} of {b}", "a {a} in {b}", "{b}", "{a}s", "my {a} for {b}")
"""Foreign goals, asked for in the world's own phrasings."""
_F = ("haiku", "sonnet", "song", "slogan", "headline", "summary", "tweet", "essay", "email")
_L = tuple("Spanish German French Latin Greek Chinese Japanese Arabic Hindi Swedish".split())
_ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyz",
    "etaoinshrdlu",
    "абвгдежзиклмнопрст",
    "αβγδεζηθικλμ",
    "的一是不了人我在有他这中大来",
    "あいうえおかきくけこさしすせそ",
    "0123456789+-*/=()",
    "{}[]<>;:._!?@#$%^&|~",
    "🙂🎉🚀🌧🐙🍕",
)


def outside_text(rng: random.Random) -> str:
    """Returns a training text from outside the world: a listed or filled pattern, or gibberish."""
    roll = rng.random()
    if roll < 0.3:
        return rng.choice(TRAIN_OUTSIDE)
    if roll < 0.65:
        return _fill(rng.choice(_PATTERNS), rng)
    if roll < 0.8:
        goal = f"{rng.choice(_VERBS)} {rng.choice(_GOALS)}"
        return rng.choice(PHRASINGS).format(goal=_fill(goal, rng))
    return _gibberish(rng)


def _fill(pattern: str, rng: random.Random) -> str:
    values: dict[str, Callable[[], str]] = {
        "{a}": lambda: rng.choice(_A) if rng.random() < 0.6 else made_up_word(rng),
        "{b}": lambda: rng.choice(_B) if rng.random() < 0.6 else made_up_word(rng).title(),
        "{f}": lambda: rng.choice(_F),
        "{l}": lambda: rng.choice(_L),
        "{d}": lambda: str(rng.randint(2, 999)),
    }
    for slot, value in values.items():
        while slot in pattern:
            pattern = pattern.replace(slot, value(), 1)
    return pattern


def made_up_word(rng: random.Random) -> str:
    """Returns a pronounceable word, so that "outside" is more than a list of known words."""
    syllables = [
        rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") + rng.choice(("", "", "n", "r", "s"))
        for _ in range(rng.choice((1, 2, 2, 3)))
    ]
    return "".join(syllables)


def _gibberish(rng: random.Random) -> str:
    alphabet = rng.choice(_ALPHABETS)
    words = (
        "".join(rng.choices(alphabet, k=rng.randint(1, 10))) for _ in range(rng.randint(1, 12))
    )
    return " ".join(words)
