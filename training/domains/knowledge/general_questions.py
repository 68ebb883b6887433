"""Everyday questions by topic, which hold adapters to the base model. They have no answers, since
adapters are held to the base model's own."""

from training.domains.knowledge.passages import Passage, Question

_BY_TOPIC = {
    "Countries": (
        "Which is the largest country in the world?",
        "Which country has the most people?",
        "Which country is shaped like a boot?",
        "Which country lies north of the United States?",
    ),
    "Rivers": ("Which river made the Grand Canyon?", "What is the longest river in the world?"),
    "Cities": ("Which city is known as the Big Apple?", "In which city is the White House?"),
    "Animals": (
        "What do cows eat?",
        "Which bird lives in Antarctica and cannot fly?",
        "How many legs does a spider have?",
        "What is a young cat called?",
        "Which animal has a trunk?",
    ),
    "Plants": (
        "Which part of a plant grows under the ground?",
        "Which tree do acorns come from?",
        "What do plants need to grow?",
    ),
    "Food": (
        "What is bread made of?",
        "Which fruit is yellow and curved?",
        "From what is cheese made?",
        "Which drink is made from grapes?",
    ),
    "Science": (
        "What force pulls things to the ground?",
        "At what temperature does water boil?",
        "What do magnets attract?",
        "Which metal is liquid at room temperature?",
        "What is the smallest unit of life?",
        "Who discovered gravity?",
    ),
    "Space": (
        "What is the name of our galaxy?",
        "What goes around the Earth?",
        "Who was the first man on the Moon?",
    ),
    "History": (
        "Who was the wife of Napoleon?",
        "In which year did the Second World War end?",
        "Who built the Great Wall?",
        "Which ship sank in 1912?",
    ),
    "Books": ("Which detective lives in Baker Street?", "What do you find in a library?"),
    "Music": ("Which instrument has 88 keys?", "Who composed the Moonlight Sonata?"),
    "Sport": ("How many players are in a football team?", "Which sport is played at Wimbledon?"),
    "Words": ("What is the plural of mouse?", "Which word means the same as big?"),
    "Numbers": (
        "What is two plus two?",
        "How many minutes are in an hour?",
        "How many sides does a triangle have?",
    ),
    "Time": ("How many days are in a week?", "What is the last month of the year?"),
    "Colours": ("What do you get when you mix blue and yellow?",),
    "Body": ("How many fingers are on a hand?", "What covers the human body?"),
    "Weather": ("What falls from clouds?", "What do people carry when it rains?"),
    "Home": ("In which room do people cook?", "What do people sleep on?"),
    "Religion": ("What is the holy book of Islam?",),
    "Materials": ("What is glass made from?", "What is paper made from?"),
    "Tools": ("What tells the time?", "What is a hammer used for?"),
    "Travel": ("What do people fly in?", "What does a train run on?"),
    "Computers": ("What is used to type on a computer?",),
}

GENERAL = tuple(
    Passage(
        id=f"general questions/{topic}",
        title=topic,
        context="",
        questions=tuple(
            Question(f"general questions/{topic}/{i}", text, "") for i, text in enumerate(texts)
        ),
        cluster=topic,
    )
    for topic, texts in _BY_TOPIC.items()
)
