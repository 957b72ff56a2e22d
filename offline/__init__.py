"""A small web and a small model for runs without key and network, and the way both of them read words.

`offline.web` is a site of a dozen pages on durable execution; `offline.model` is an agent model that
searches it, reads its best pages and quotes them. The site's host is a reserved name, so no real page can
ever be mistaken for one of its pages.
"""

import re

from offline import needed

needed.check()

HOST = "offline.example"
SITE = f"site:{HOST}"  # the search operator that sends a query to this site instead of the search engines

_UNIMPORTANT = """
a about after again all also am an and another any anyone anything are as at be because been before being
best better between both but by came can come could did do does doing done during each either else ever
every explain few find for from get give go good had happen happens has have having he help her here him his
how i if in into is it its just know let like list made make makes many may me mean means might more most
much must my need never no nor not now of off on one only or other our out over own please really same say
see shall she should show so some still such take tell than that the their them then there these they thing
this those through to too two under up us use used using very want was way we well were what when where
whether which while who whose why will with without won work works would yet you your
"""
_STOP_WORDS = frozenset(_UNIMPORTANT.split())

_ENDING = re.compile(
    r"(?<=\w{3})(?:ations?|ating|ate[sd]?|ions?|ings?|ies|ied|ability|able|ency|ence|ent|ed|es|e|ly|(?<!s)s|(?<![aeiou])y(?:ing)?)$"
)


def terms(text: str) -> list[str]:
    """The words of `text` that carry meaning, in order, without their grammatical endings.

    >>> terms("Why are tool calls retried?")
    ['tool', 'call', 'retr']
    """
    words = re.findall(r"[a-z0-9]+", text.lower().replace("'s", "").replace("’s", ""))
    return [_ENDING.sub("", word) for word in words if word not in _STOP_WORDS]
