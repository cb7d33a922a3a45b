"""How they talk: what every topology is made of. The topologies themselves are the files of `topologies/`, one pattern each."""
