"""Where and when: nodes, links, networks, the virtual clock, and what a call or a transfer costs."""
