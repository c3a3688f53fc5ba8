"""``nodemem report --html``: a report as one page that needs nothing else, for people to attach to an incident.

``page`` makes it from a report and, where they are known, the extras of the machine itself (``data``). ``tree`` turns
the report into sizes within sizes, ``treemap`` into rectangles, ``mapview`` into lists; ``memory``, ``chart`` and
``danger`` are the sections; ``tags`` alone makes markup.
"""
