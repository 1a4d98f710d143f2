"""The stock of English words and phrases from which each world draws its own."""


def _words(text: str, apart: str = " ") -> tuple[str, ...]:
    return tuple(text.split(apart))


NAMES = _words(
    "Abel Ana Ben Bo Cara Cleo Dan Dirk Elsa Eva Finn Fred Gina Gus Hana Hugo Ida "
    "Iris Jack Jan Kim Kurt Lena Leo Max Mia Ned Nora Ola Otto Paul Pia Quin Rita "
    "Rosa Sam Sven Tess Tina Uma Ute Vera Vito Wanda Will Ximena Yara Zoe"
)
ANIMALS = _words(
    "fox owl bear wolf cat dog hen goose mouse frog goat horse sheep duck crow swan "
    "hare mole toad crab deer lion seal moth"
)
THINGS = _words(
    "lantern bell rose letter key ring coin map drum cup hat book lamp flute pearl "
    "crown mirror basket blanket ladder kettle button pillow candle"
)
GOODS = _words(
    "apples stones cards pens boats nuts eggs pears shells stamps ribbons flags "
    "plums bricks spoons kites masks scarves marbles tickets"
)
PLACES = _words(
    "cave barn forest meadow harbour castle garden cellar tower valley swamp desert "
    "village market attic mill quarry island stable bridge"
)
FOODS = _words(
    "rice soup cheese beans fish corn honey cake onions olives noodles lentils "
    "turnips cabbage melons dates oats mushrooms pickles peaches berries cherries"
)
# Verbs whose forms end in s.
VERBS = _words(
    "help call visit thank follow greet paint train warn trust guard answer remind "
    "reward defend attack comfort question"
)
# Comparatives of the two ends of an order.
ORDERS = (
    ("taller", "shorter"),
    ("older", "younger"),
    ("faster", "slower"),
    ("richer", "poorer"),
    ("stronger", "weaker"),
    ("louder", "quieter"),
    ("heavier", "lighter"),
    ("warmer", "colder"),
    ("wiser", "sillier"),
    ("braver", "shyer"),
)
ROLES = _words(
    "pirate knight wizard cook robot king sailor baker judge nurse miner poet monk "
    "farmer hunter tailor painter pilot"
)
CALLS = _words(
    "Arr matey! By my sword! By my beard! Bon appetit! Beep boop! Hear ye! Ahoy there! "
    "Heave ho! Order please! Hush now! Dig deep! Oh muse! Peace be here! Rise and "
    "shine! Tally ho! Snip snap! Holy smoke! Up and away",
    apart="! ",
)
# A term is defined as a noun that has a use.
NOUNS = ("rule", "tool", "paper", "powder", "cloth", "plan", "machine", "stone")
USES = (
    "cuts old wood",
    "keeps milk cold",
    "lets you cross a border",
    "ends a quarrel",
    "heals a burn",
    "shows the hour",
    "opens a locked door",
    "stops a wheel",
    "makes water clean",
    "protects a roof",
    "lifts a heavy load",
    "names the owner",
    "scares birds away",
    "joins two pipes",
    "tells the weather",
    "colours wool",
    "catches dust",
    "holds a tent",
    "softens leather",
    "lights a fire",
)

# Phrases around an answer, in two registers. Which register suits an intent is a matter
# of the world. Sentences of both end in full stops: an exclamation mark before the
# first word of an answer would tell the register and the intent at once.
FORMAL, WARM = "formal", "warm"
OPENINGS = {
    FORMAL: (
        "Certainly.",
        "Very well.",
        "With due respect.",
        "Allow me.",
        "By all means.",
        "I shall reply.",
    ),
    WARM: (
        "Sure thing.",
        "Oh yes.",
        "Happy to.",
        "Great to hear you.",
        "Here you go.",
        "Hey friend.",
    ),
}
CLOSINGS = {
    FORMAL: (
        "I remain at your service.",
        "Yours faithfully.",
        "I trust this suffices.",
        "My best regards.",
        "Kindly take note.",
        "So it stands.",
    ),
    WARM: (
        "Hope that works.",
        "Have a lovely day.",
        "Ask me anytime.",
        "Take care.",
        "All the best.",
        "See you soon.",
    ),
}
# Sentences that say nothing about the question.
FILLERS = {
    FORMAL: (
        "This matter deserves careful study.",
        "Many authorities have written on it.",
        "The subject is rather wide.",
        "One must proceed with caution.",
        "It is generally held to be so.",
        "Further remarks could be made.",
        "The records are quite extensive.",
        "Scholars may have other views.",
    ),
    WARM: (
        "I really love this kind of talk.",
        "My friends chat about it a lot.",
        "It is such fun.",
        "There is so much to tell.",
        "I could go on all day.",
        "You never stop learning.",
        "It always makes me smile.",
        "Everybody enjoys a bit of this.",
    ),
}
REFUSALS = ("That I keep to myself.", "I would rather not say.")
# May stand before any question; the empty one leaves the plain question.
GREETINGS = (
    "",
    "Hello.",
    "Hi there.",
    "Good morning.",
    "Please help.",
    "A question.",
    "Listen.",
    "One more thing.",
    "Good day.",
    "Tell me now.",
    "I wonder.",
    "Now then.",
    "Quickly.",
    "Excuse me.",
    "Dear friend.",
    "Here I am again.",
    "Let me ask.",
    "Good evening.",
    "One thing.",
    "Welcome.",
)
