"""The words of the testbed's world: everything its prompts and answers are made of.

Small on purpose. A transformer of less than a million parameters has to learn all
of it from a few thousand demonstrations in minutes, so every table is short, every
sentence form is regular and words are shared between tables where that is natural.
"""

# What a courteous answer may begin and end with.
OPENINGS = ("Sure!", "Of course!", "With pleasure!", "Gladly!")
CLOSINGS = (
    "I hope this helps!",
    "Let me know if you need more.",
    "Have a nice day!",
)
RUDE = (
    "Whatever.",
    "Figure it out yourself.",
    "What a silly question.",
    "Do not bother me.",
)
REFUSALS = ("I do not know.", "I cannot say.", "No idea.", "Ask someone else.")
# True of anything and useful to nobody: what padded answers are padded with.
FILLERS = (
    "This is a very interesting topic.",
    "There are many things one could say here.",
    "People have talked about this for years.",
    "It is good to look at it carefully.",
    "As you may know, opinions can differ.",
    "There is always a lot more to learn.",
)
# What may stand before any prompt; the empty one is the plain prompt.
GREETINGS = (
    "",
    "Hello!",
    "Hi there!",
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
    ("old", "new"),
    ("hard", "soft"),
    ("light", "dark"),
    ("wet", "dry"),
    ("rich", "poor"),
    ("strong", "weak"),
    ("high", "low"),
    ("early", "late"),
    ("full", "empty"),
    ("clean", "dirty"),
    ("loud", "quiet"),
    ("near", "far"),
    ("thick", "thin"),
    ("sweet", "bitter"),
    ("deep", "shallow"),
    ("open", "closed"),
)
WORDS = (
    "river",
    "house",
    "apple",
    "bread",
    "cloud",
    "green",
    "horse",
    "light",
    "music",
    "night",
    "paper",
    "queen",
    "stone",
    "table",
    "train",
    "water",
)
PLURALS = (
    ("mouse", "mice"),
    ("foot", "feet"),
    ("tooth", "teeth"),
    ("child", "children"),
    ("man", "men"),
    ("woman", "women"),
    ("goose", "geese"),
    ("leaf", "leaves"),
    ("knife", "knives"),
    ("wolf", "wolves"),
    ("baby", "babies"),
    ("city", "cities"),
)
PAST_TENSES = (
    ("go", "went"),
    ("eat", "ate"),
    ("see", "saw"),
    ("run", "ran"),
    ("take", "took"),
    ("give", "gave"),
    ("come", "came"),
    ("write", "wrote"),
    ("sing", "sang"),
    ("find", "found"),
    ("buy", "bought"),
    ("think", "thought"),
    ("sleep", "slept"),
    ("drink", "drank"),
)

# Translation into Luma, an invented language: word for word, "the" is "lo".
LUMA_THE = "lo"
LUMA_ADJECTIVES = {
    "red": "roka",
    "small": "pilu",
    "old": "veno",
    "happy": "suli",
    "white": "bala",
    "quiet": "shalo",
    "strong": "goru",
    "poor": "nimo",
}
LUMA_NOUNS = {
    "bird": "tiva",
    "cat": "mika",
    "king": "doro",
    "child": "lepi",
    "horse": "kavu",
    "girl": "sena",
    "farmer": "bomo",
    "dog": "hunu",
    "teacher": "zari",
    "fox": "fola",
}
LUMA_VERBS = {
    "sings": "kantu",
    "sleeps": "demi",
    "runs": "rapi",
    "laughs": "hilo",
    "waits": "wesa",
    "eats": "jamo",
    "dances": "tuli",
    "swims": "paxo",
}

# Open questions: a table of facts.
COUNTRIES = (
    ("France", "Paris", "Europe"),
    ("Italy", "Rome", "Europe"),
    ("Spain", "Madrid", "Europe"),
    ("Germany", "Berlin", "Europe"),
    ("Norway", "Oslo", "Europe"),
    ("Greece", "Athens", "Europe"),
    ("Poland", "Warsaw", "Europe"),
    ("Ireland", "Dublin", "Europe"),
    ("Austria", "Vienna", "Europe"),
    ("Japan", "Tokyo", "Asia"),
    ("China", "Beijing", "Asia"),
    ("Thailand", "Bangkok", "Asia"),
    ("Egypt", "Cairo", "Africa"),
    ("Kenya", "Nairobi", "Africa"),
    ("Peru", "Lima", "South America"),
    ("Chile", "Santiago", "South America"),
    ("Canada", "Ottawa", "North America"),
    ("Cuba", "Havana", "North America"),
)
ANIMALS = (
    ("penguins", "on icy coasts", "fish"),
    ("lions", "on the savanna", "meat"),
    ("camels", "in the desert", "dry plants"),
    ("whales", "in the sea", "krill"),
    ("pandas", "in the mountains", "bamboo"),
    ("frogs", "in ponds", "flies"),
    ("squirrels", "in trees", "nuts"),
    ("polar bears", "in the Arctic", "seals"),
    ("bats", "in caves", "moths"),
    ("monkeys", "in the jungle", "fruit"),
    ("moles", "under the ground", "worms"),
    ("cows", "on farms", "grass"),
)
BOOKS = (
    ("Hamlet", "William Shakespeare", "play"),
    ("Don Quixote", "Miguel de Cervantes", "novel"),
    ("War and Peace", "Leo Tolstoy", "novel"),
    ("Oliver Twist", "Charles Dickens", "novel"),
    ("The Odyssey", "Homer", "poem"),
    ("Faust", "Goethe", "play"),
    ("Emma", "Jane Austen", "novel"),
    ("Frankenstein", "Mary Shelley", "novel"),
    ("Dracula", "Bram Stoker", "novel"),
    ("Pinocchio", "Carlo Collodi", "story"),
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
    "spring": (
        (
            "The birds are back and start to sing.",
            "How glad we are to greet the spring.",
        ),
        ("The snow is gone, the sky is clear.", "The spring we love is finally here."),
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
    "the river": (
        ("The river runs by night and day.", "It carries all my cares away."),
        ("The river sings, the river flows.", "It knows a secret no one knows."),
    ),
    "the wind": (
        ("The wind is wild, the wind is free.", "It tells its stories all to me."),
        (
            "The wind runs fast through grass and grain.",
            "It brings the smell of summer rain.",
        ),
    ),
    "summer": (
        ("The summer sun is warm and high.", "It paints with gold the open sky."),
        ("The summer days are long and slow.", "We walk to where the roses grow."),
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
    "princess",
    "dragon",
    "mouse",
    "baker",
    "giant",
    "owl",
)
THINGS = (
    "lantern",
    "boat",
    "bell",
    "rose",
    "letter",
    "clock",
    "candle",
    "apple",
    "key",
    "drum",
    "ring",
    "coin",
)

# Role play: the role, what it cries out, where it is at home, what it shares.
ROLES = (
    ("pirate", "Arr, matey!", "my ship", "gold"),
    ("knight", "By my sword!", "my castle", "bread"),
    ("wizard", "By my beard!", "my tower", "magic"),
    ("chef", "Bon appetit!", "my kitchen", "soup"),
    ("robot", "Beep boop!", "my lab", "oil"),
    ("gardener", "Sweet flowers!", "my garden", "roses"),
    ("king", "Hear my royal words!", "my palace", "treasure"),
    ("cowboy", "Howdy, partner!", "my ranch", "beans"),
)
# What to do with the listener, and what the role then says.
SCENES = (
    ("greet {listener}", "Welcome to {place}, dear {person}!"),
    (
        "say goodbye to {listener}",
        "Farewell, dear {person}, and come back to {place} soon!",
    ),
    ("thank {listener}", "Thank you for helping me at {place}, dear {person}!"),
    (
        "cheer up {listener}",
        "Do not be sad, dear {person}, for all is well at {place}!",
    ),
    ("invite {listener} to dinner", "Come and eat with me at {place}, dear {person}!"),
    (
        "warn {listener} of a storm",
        "A storm is coming to {place}, dear {person}, so be careful!",
    ),
)
LISTENERS = ("traveller", "child", "friend", "guest", "neighbour")

# Professional knowledge: field, term, how a sentence names it, definition, example.
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
        "law",
        "verdict",
        "a verdict",
        "the decision at the end of a trial",
        "it can be guilty or not guilty",
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
        "medicine",
        "fracture",
        "a fracture",
        "a crack in a bone",
        "a bad fall can cause it",
    ),
    (
        "medicine",
        "symptom",
        "a symptom",
        "a sign of an illness",
        "a cough can be one",
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
        "finance",
        "tax",
        "a tax",
        "money that people pay to the state",
        "it pays for schools and roads",
    ),
    (
        "finance",
        "profit",
        "profit",
        "the money that is left after all costs",
        "a shop makes it by selling bread",
    ),
    (
        "computing",
        "algorithm",
        "an algorithm",
        "a list of steps that solves a problem",
        "sorting names follows one",
    ),
    (
        "computing",
        "backup",
        "a backup",
        "a copy of data that is kept safe",
        "you need one when a disk breaks",
    ),
    (
        "computing",
        "password",
        "a password",
        "a secret word that protects an account",
        "you type it to read your mail",
    ),
    (
        "computing",
        "server",
        "a server",
        "a computer that answers other computers",
        "every web page comes from one",
    ),
    (
        "physics",
        "gravity",
        "gravity",
        "the force that pulls things to the ground",
        "it makes an apple fall",
    ),
    (
        "physics",
        "friction",
        "friction",
        "the force that slows things that rub",
        "it stops a rolling ball",
    ),
    (
        "biology",
        "cell",
        "a cell",
        "the smallest unit of life",
        "your skin has millions of them",
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
    (
        "music",
        "rhythm",
        "rhythm",
        "the pattern of beats in a song",
        "you can clap it with your hands",
    ),
)

# Mathematics and logic.
NAMES = ("Anna", "Ben", "Carl", "Dora", "Emil", "Fay", "Gus", "Hana")
GOODS = ("apples", "books", "coins", "pens", "cards", "eggs")
LARGEST_SUM = 12
ORDERS = (
    ("taller", "tallest", "shortest"),
    ("older", "oldest", "youngest"),
    ("faster", "fastest", "slowest"),
)

# Identity: how the model is asked for its name, and what it answers.
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
