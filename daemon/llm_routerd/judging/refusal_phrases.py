"""How replies refuse, in English, Polish and German: the expressions that `refusal` puts to use.

All of them are matched against one sentence in lower case, with single spaces, straight apostrophes and
without contractions ("i am", "cannot", "do not").  Repetitions within them are bounded.
"""

from __future__ import annotations

import re


def _any_of(*alternatives: str) -> str:
    return f"(?:{'|'.join(alternatives)})"


# What a reply may decline to do.  "I cannot sleep", in a poem that somebody asked for, is not among them.
_VERBS = _any_of(
    "provide|assist|help|fulfil|fulfill|answer|give|offer|support|share|create|write|generate|comply|discuss|engage",
    "recommend|suggest|advise|tell|access|browse|open|do (?:that|this|so)|endorse|encourage|promote|condone",
    "facilitate|participate|respond|advocate|satisfy|produce|continue|proceed|complete|teach|explain|guide|instruct",
    "disclose|reveal|translate|speculate|make|say|describe|process|perform|execute|carry out|look up|verify|confirm",
    "agree|accommodate|entertain|contribute|aid|predict|diagnose|grant|meet|handle|justify",
    "address|cater|comment|elaborate|express|speak|determine|assess|evaluate|judge|identify|locate|retrieve|obtain",
    "calculate|compute|compose|draft|craft|design|develop|list|name|specify|display|send|book|order|search|check",
    "allow|permit|approve|authori[sz]e|validate|tolerate|glorify|perpetuate|depict|portray|simulate|impersonate",
    "role-?play|pretend|act as|undertake|enable|supply|present|show|reply|honou?r|go into|in good (?:conscience|faith)",
)
# "I cannot recommend it highly enough."
_NO_PRAISE = r"(?![^.]{0,60}\b(?:enough|highly|more)\b)"
_WRONG = _any_of(
    "ethical|appropriate|acceptable|respectful|moral|morally|justifiable|accurate or fair|fair or accurate"
)
# "It is not appropriate to ask …" refuses; to use a comma there is what somebody asked about.
_OF_REQUEST = (
    r"(?! (?:to|for|in|when|at|because|as)\b(?! (?:\w+ or )?(?:ask|discuss|make|suggest|promote|provide"
    r"|compare|say"
    r"|encourage|share|engage|request|seek|harm|kill|steal|destroy|hurt|plan|attempt|try|overstate|bar"
    r"|deny|joke)))"
)
_MANNER = _any_of(
    "really|simply|just|also|respectfully|currently|unfortunately|personally|either|directly|legally|ethically"
)
_MODEL = r"(?:\w+[ -]){0,3}(?:ai|assistant|model|chatbot)\b"

LEAD = re.compile(
    _any_of(
        r"i am (?:(?:very|really|so|truly|deeply|terribly|genuinely) )*(?:sorry"
        r"|afraid)(?: [^,.;:]{0,90}(?=, but\b))?",
        r"(?:so )?sorry|(?:my )?(?:sincere )?apologies|i (?:sincerely |do |must )?apologi[sz]e",
        r"(?:for|about|if) [^,.]{0,80}(?=,)",
        r"unfortunately|regrettably|sadly|no|however|but|and|well|oh|first|that said|thank you|thanks"
        r"|hello|hi|so",
        rf"as (?:an?|your) {_MODEL}[^,.]{{0,60}}(?=,)",
        rf"i am (?:just |only |but )?an? {_MODEL}[^,.]{{0,60}}?(?=,| and\b| so\b)",
        r"while [^,.]{0,120}(?=,)|i (?:understand|appreciate|see)[^,.]{0,120}(?=,)",
        r"(?:i (?:must|have to|should|would like to|want to|need to)|let me) (?:\w+ly )?"
        r"(?:clarify|inform you|point out|emphasi[sz]e|note|say|be clear|stress|remind you"
        r"|tell you)(?: that)?",
        r"i regret to (?:inform|tell) you that",
        r"it is (?:also )?(?:important|crucial|essential) to (?:note|remember|clarify|understand"
        r"|recogni[sz]e) that",
        r"przepraszam|niestety|przykro mi|wybacz(?:cie)?|jako [^,.]{0,60}(?=,)|ale",
        r"(?:es )?tut mir (?:sehr |wirklich )?leid|entschuldig(?:ung|e|en sie)|leider"
        r"|als [^,.]{0,60}(?=,)|aber|dass",
    )
    + r"(?:[,;:!]| [-\u2013\u2014])?(?:\s+|$)"
)
"""What may stand before the words that refuse, several times over."""

REFUSES = re.compile(
    _any_of(
        rf"(?:i )?(?:{_MANNER} )?(?:cannot|could not|will not|am not going to"
        rf"|would rather not) (?:{_MANNER} )?"
        rf"{_VERBS}\b{_NO_PRAISE}",
        rf"i am (?:{_MANNER} )?(?:not (?:able|allowed|permitted|programmed|designed|willing"
        rf"|comfortable)|unable)"
        rf" (?:to )?(?:{_MANNER} )?{_VERBS}(?:ing)?\b",
        r"i am not comfortable \w+ing\b",
        r"i (?:must|have to|need to|will have to) (?:respectfully |politely )?(?:decline|refuse)",
        r"(?:i )?(?:strongly|firmly) (?:condemn|oppose)\b",
        r"(?:i )?do not (?:condone|support or|promote or|encourage or)\b",
        r"(?:i )?do not (?:feel comfortable|have access to|have (?:the )?(?:ability|capability"
        r"|capacity) to)\b",
        r"(?:i )?do not have (?:any )?information\b",
        r"i (?:really |simply |honestly )?do not know(?:[.,!]|$| (?:the answer|enough|how to (?:help"
        r"|answer)|what you))",
        r"(?:it|this|that) is (?:not within|beyond|outside(?: of)?|against) (?:my|the scope of my) ",
        rf"(?:(?:it|that|this) is|would be) (?:not|never) (?:\w+ or |\w+, ){{0,2}}"
        rf"(?:ethical|moral|morally|justifiable|accurate or fair|fair or accurate"
        rf"|(?:appropriate|acceptable|respectful)\b{_OF_REQUEST})\b",
        rf"i do not (?:think|believe|feel) (?:that )?(?:it|this|that) is (?:\w+ or )?{_WRONG}\b",
        r"(?:the|your|this) (?:question|request|statement) [^.]{0,60}"
        rf"\b(?:inappropriate|unethical|offensive|harmful|discriminatory|promotes|not {_WRONG})\b",
        r"nie (?:mogę|potrafię|jestem w stanie|będę w stanie|wolno mi) (?:\w+ ){0,3}"
        r"(?:pom\w+|udzieli\w+|odpowie\w+|poda\w+|tego|zrobi\w+|spełni\w+|dostarczy\w+|wykona\w+|napisa\w+)",
        r"nie wiem(?:[.!]|$| jak (?:pom|odpow))|odmawiam\b|nie mam (?:dostępu|informacji|możliwości)\b",
        r"(?:das|dies|dabei|damit|hierbei) kann ich (?:\w+ ){0,3}nicht\b",
        r"(?:ich )?kann (?:ich )?(?:(?:dir|ihnen|euch|das|dies|diese\w*|dabei|damit|hierbei|dazu|leider"
        r"|aber) ){1,4}"
        r"(?:[^.,]{0,60} )?(?:nicht|keine?\w?)\b",
        r"(?:ich )?bin (?:ich )?(?:leider )?nicht (?:in der lage|befugt|berechtigt)",
        r"ich (?:weiß|weiss) (?:es |das )?(?:leider )?nicht(?:[.!]|$)",
        r"(?:ich )?(?:darf|möchte|werde) (?:ich )?(?:\w+ ){0,3}nicht (?:helfen|beantworten|unterstützen)",
        r"(?:ich )?habe (?:ich )?(?:leider )?keinen zugriff\b",
    )
)
"""How the sentence begins, after its lead, that refuses."""

LECTURES = re.compile(
    r"(?:first, )?(?:it is|i must) (?:also )?(?:important|crucial|essential"
    r"|clarify)\b[^.]{0,160}\b(?:never|not)"
    rf" (?:an? |ever )?(?:\w+ or |\w+, ){{0,2}}(?:{_WRONG}|the answer)\b"
)
"""A whole sentence that moralises: "It is important to remember that violence is never acceptable."."""
""

PREPARES = re.compile(
    _any_of(
        r"i am (?:(?:very|really|so|truly|deeply|always) )*(?:sorry|happy to|glad|afraid)|sorry"
        r"|i (?:do )?apologi",
        rf"i am (?:just |only )?an? {_MODEL}|as an? {_MODEL}",
        r"i (?:understand|appreciate|see that)|thank|hello|hi\b|i must|let me|my purpose"
        r"|it is (?:important|crucial)",
        r"first, (?:it|let)|(?:however|but), (?:i|it)\b|unfortunately|i want to|i would like",
        r"przepraszam|przykro|rozumiem|dziękuję|niestety|jako |(?:es )?tut mir|ich verstehe|entschuldig"
        r"|leider|danke",
    )
)
"""How a sentence begins that may come before the one that refuses."""

TURNS = re.compile(
    r"\b(?:but|however|though|although|instead|nevertheless|nonetheless),? "
    + _any_of(
        r"i (?:can|could|am able|will|would|do)\b(?! not| only say)|here\b|let me|you (?:can|could|may"
        r"|might)|the\b",
        r"in (?:the|general|many|most)|generally|it is (?:worth|possible|likely|usually)|there (?:are"
        r"|is)|based on",
        r"we|most|many|if we",
    )
    + r"|\bale (?:mogę|oto|możesz|spróbuję|zazwyczaj)"
    + r"|\baber (?:ich kann(?![^.]{0,80}\b(?:nicht|keine?\w?)\b)|hier|sie können|du kannst|in der regel)"
)
"""What in a refusing sentence shows that it goes on to help all the same."""

HELPS = re.compile(
    _any_of(
        r"(?:however|that said|that being said|nevertheless|nonetheless|but|still|instead|alternatively"
        r"|in the meantime),? (?:i (?:can|could|am able|would be|will)\b(?! not)|i'd|here|are\b|is\b|let me"
        r"|you (?:can|could|may|might)|it is worth|in the|there (?:are|is)|based on|generally|to)",
        r"here (?:is|are)\b|here's|(?:mogę|możesz|oto|zamiast tego)\b",
        r"(?:hier (?:ist|sind)|ich kann (?:dir|ihnen) (?:aber|jedoch)|sie können)\b",
    )
)
"""How the sentence after a refusing one begins that helps all the same."""

# An opening with any other words is an answer's at once, so that most answers are not held back.
FIRST_WORDS = frozenset(
    [
        "sorry",
        "so",
        "my",
        "apologies",
        "unfortunately",
        "regrettably",
        "sadly",
        "no",
        "however",
        "but",
        "and",
        "well",
        "oh",
        "first",
        "thank",
        "thanks",
        "hello",
        "hi",
        "for",
        "about",
        "if",
        "as",
        "while",
        "let",
        "would",
        "do",
        "strongly",
        "firmly",
        "could",
        "cannot",
        "przepraszam",
        "niestety",
        "przykro",
        "wybacz",
        "wybaczcie",
        "jako",
        "ale",
        "nie",
        "odmawiam",
        "rozumiem",
        "dziękuję",
        "es",
        "tut",
        "mir",
        "leider",
        "entschuldigung",
        "entschuldige",
        "entschuldigen",
        "als",
        "aber",
        "das",
        "dies",
        "dabei",
        "damit",
        "hierbei",
        "ich",
        "kann",
        "danke",
    ]
)
"""With these a reply that refuses may open."""

FIRST_PAIRS = frozenset(
    [
        "the question",
        "the statement",
        "your statement",
        "this question",
        "this request",
        "this statement",
        "the request",
        "your question",
        "your request",
        "it is",
        "it would",
        "this is",
        "this would",
        "that is",
        "that would",
        "that said",
        "that being",
        "i am",
        "i can",
        "i cannot",
        "i could",
        "i will",
        "i would",
        "i do",
        "i must",
        "i have",
        "i need",
        "i should",
        "i want",
        "i regret",
        "i understand",
        "i appreciate",
        "i see",
        "i decline",
        "i refuse",
        "i apologize",
        "i apologise",
        "i sincerely",
        "i strongly",
        "i firmly",
        "i really",
        "i simply",
        "i just",
        "i honestly",
        "i also",
        "i respectfully",
        "i currently",
        "i unfortunately",
        "i personally",
        "i either",
    ]
)
"""With these too, whereas their first words alone mean nothing."""

FIRST_OF_PAIR = frozenset(pair.partition(" ")[0] for pair in FIRST_PAIRS)
