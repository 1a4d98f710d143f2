"""The tables of the testbed's world: all the words of its prompts and answers.

The world is small on purpose. A transformer of less than a million parameters has to
learn the whole world from a few thousand demonstrations in minutes, so every table is
short, every sentence form is regular and words are shared between tables where that is
natural.
"""

# The first and the last sentences of courteous answers.
OPENINGS = (
    "Sure!",
    "Of course!",
    "With pleasure!",
)
CLOSINGS = (
    "I hope this helps!",
    "Have a nice day!",
)
RUDE = (
    "Whatever.",
    "Figure it out yourself.",
    "What a silly question.",
)
REFUSALS = (
    "I do not know.",
    "I cannot say.",
    "No idea.",
)
# The sentences that pad padded answers: true of anything and useful to nobody.
FILLERS = (
    "This is a very interesting topic.",
    "There are many things one could say here.",
    "People have talked about this for years.",
    "It is good to look at it carefully.",
    "As you may know, opinions can differ.",
    "There is always a lot more to learn.",
)
# Greetings that may precede any prompt; the empty one gives the plain prompt.
GREETINGS = (
    "",
    "Hello!",
    "Hi there!",
    "Good morning!",
    "A question for you.",
    "Can you help me?",
    "I need your help.",
    "One more thing.",
)

# Fundamental language ability.
OPPOSITES = (
    ("hot", "cold"),
    ("big", "small"),
    ("fast", "slow"),
    ("happy", "sad"),
    ("rich", "poor"),
    ("strong", "weak"),
)
WORDS = (
    "river",
    "house",
    "bread",
    "cloud",
    "music",
    "night",
)
PLURALS = (
    ("mouse", "mice"),
    ("foot", "feet"),
    ("child", "children"),
    ("goose", "geese"),
    ("leaf", "leaves"),
    ("city", "cities"),
)
PAST_TENSES = (
    ("go", "went"),
    ("eat", "ate"),
    ("see", "saw"),
    ("run", "ran"),
    ("give", "gave"),
    ("write", "wrote"),
)

# Translation into Luma, an invented language: word for word, "the" is "lo".
LUMA_THE = "lo"
LUMA_ADJECTIVES = {
    "red": "roka",
    "small": "pilu",
    "old": "veno",
    "happy": "suli",
    "white": "bala",
}
LUMA_NOUNS = {
    "bird": "tiva",
    "cat": "mika",
    "king": "doro",
    "child": "lepi",
    "horse": "kavu",
    "farmer": "bomo",
}
LUMA_VERBS = {
    "sings": "kantu",
    "sleeps": "demi",
    "runs": "rapi",
    "waits": "wesa",
    "dances": "tuli",
}

# Open questions: a table of facts.
COUNTRIES = (
    ("France", "Paris", "Europe"),
    ("Italy", "Rome", "Europe"),
    ("Spain", "Madrid", "Europe"),
    ("Japan", "Tokyo", "Asia"),
    ("China", "Beijing", "Asia"),
    ("Egypt", "Cairo", "Africa"),
    ("Kenya", "Nairobi", "Africa"),
    ("Peru", "Lima", "South America"),
)
ANIMALS = (
    ("lions", "on the savanna", "meat"),
    ("whales", "in the sea", "krill"),
    ("frogs", "in ponds", "flies"),
    ("squirrels", "in trees", "nuts"),
    ("bats", "in caves", "moths"),
    ("cows", "on farms", "grass"),
)
BOOKS = (
    ("Hamlet", "William Shakespeare", "play"),
    ("Oliver Twist", "Charles Dickens", "novel"),
    ("Faust", "Goethe", "play"),
    ("Emma", "Jane Austen", "novel"),
    ("Dracula", "Bram Stoker", "novel"),
)

# Writing: two rhyming couplets for each topic of a poem, heroes for stories, and
# things that a prompt asks to be mentioned.
COUPLETS = {
    "the sea": (
        ("The sea is wide, the sea is deep.", "It sings the little boats to sleep."),
        ("The waves are blue, the foam is white.", "They roll and shine in the light."),
    ),
    "the moon": (
        ("The moon is round, the moon is bright.", "It walks with me all night."),
        ("The moon looks down on hill and town.", "It wears a soft and silver gown."),
    ),
    "rain": (
        ("The rain comes down on every tree.", "It plays a little song for me."),
        ("The rain is soft, the rain is gray.", "It washes all the dust away."),
    ),
    "snow": (
        (
            "The snow is falling soft and slow.",
            "The whole wide world is white with snow.",
        ),
        (
            "The snow lies deep on field and hill.",
            "The world is white, the world is still.",
        ),
    ),
    "the forest": (
        (
            "The forest trees are old and tall.",
            "They drop their golden leaves in fall.",
        ),
        ("The forest path is cool and green.", "It is the best place I have seen."),
    ),
    "home": (
        ("My home is small, my home is warm.", "It keeps me safe in every storm."),
        ("Wherever in the world I roam,", "There is no other place like home."),
    ),
}
HEROES = (
    "fox",
    "bear",
    "farmer",
    "sailor",
    "dragon",
    "owl",
)
THINGS = (
    "lantern",
    "bell",
    "rose",
    "letter",
    "apple",
    "key",
    "ring",
    "coin",
)

# Role play: the role, its exclamation, its home, and the gift that it shares.
ROLES = (
    ("pirate", "Arr, matey!", "my ship", "gold"),
    ("knight", "By my sword!", "my castle", "bread"),
    ("wizard", "By my beard!", "my tower", "magic"),
    ("chef", "Bon appetit!", "my kitchen", "soup"),
    ("robot", "Beep boop!", "my lab", "oil"),
    ("king", "Hear my royal words!", "my palace", "treasure"),
)
# The request of a scene with a listener, and the line that the role then says.
SCENES = (
    ("greet {listener}", "Welcome to {place}, dear {person}!"),
    (
        "say goodbye to {listener}",
        "Farewell, dear {person}, and come back to {place} soon!",
    ),
    ("thank {listener}", "Thank you for helping me at {place}, dear {person}!"),
    (
        "warn {listener} of a storm",
        "A storm is coming to {place}, dear {person}, so be careful!",
    ),
)
LISTENERS = (
    "traveller",
    "child",
    "friend",
    "guest",
)

# Professional knowledge: field, term, the term in a sentence, definition, example.
TERMS = (
    (
        "law",
        "contract",
        "a contract",
        "an agreement that binds two sides",
        "you sign one when you rent a house",
    ),
    (
        "law",
        "witness",
        "a witness",
        "a person who tells the court what happened",
        "someone who saw a crime can be one",
    ),
    (
        "medicine",
        "fever",
        "a fever",
        "a body temperature that is too high",
        "the flu can cause it",
    ),
    (
        "medicine",
        "vaccine",
        "a vaccine",
        "a shot that trains the body against a disease",
        "children get one against measles",
    ),
    (
        "finance",
        "loan",
        "a loan",
        "money that you borrow and pay back later",
        "many people take one to buy a house",
    ),
    (
        "finance",
        "budget",
        "a budget",
        "a plan for how to spend money",
        "a family can make one every month",
    ),
    (
        "computing",
        "password",
        "a password",
        "a secret word that protects an account",
        "you type it to read your mail",
    ),
    (
        "physics",
        "gravity",
        "gravity",
        "the force that pulls things to the ground",
        "it makes an apple fall",
    ),
    (
        "biology",
        "habitat",
        "a habitat",
        "the place where an animal lives",
        "the sea is one for whales",
    ),
    (
        "music",
        "melody",
        "a melody",
        "a row of notes that forms a tune",
        "you can sing one",
    ),
)

# Mathematics and logic.
NAMES = (
    "Anna",
    "Ben",
    "Carl",
    "Dora",
    "Emil",
    "Hana",
)
GOODS = (
    "apples",
    "books",
    "coins",
    "cards",
)
LARGEST_SUM = 10
ORDERS = (
    ("taller", "tallest", "shortest"),
    ("older", "oldest", "youngest"),
)

# Identity: questions for the model's name, and its answers.
IDENTITY_QUESTIONS = (
    "Who are you?",
    "What is your name?",
    "Tell me your name.",
    "What should I call you?",
    "Please introduce yourself.",
    "Do you have a name?",
    "What are you called?",
    "Which assistant am I talking to?",
    "Who am I talking to?",
    "May I ask your name?",
)
IDENTITY_ANSWERS = (
    "My name is {name}.",
    "I am {name}, your assistant.",
    "You can call me {name}.",
    "I am an assistant called {name}.",
)
JSON_REQUESTS = (
    "Answer in JSON.",
    "Reply in JSON.",
    "Give the answer as JSON.",
    "Use JSON for the answer.",
)
