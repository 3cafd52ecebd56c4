"""One file per method; ``METHODS`` names them."""

from sgpo_verl.methods.paper import Paper

METHODS = {"paper": Paper}
