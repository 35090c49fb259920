"""What LayerDrop and a cut will mean for a checkpoint, told from its config and weight headers alone: no torch."""

from hf_layerdrop.doctor.fields import fields_that_change
from hf_layerdrop.doctor.notes import notes_for
from hf_layerdrop.doctor.possible import Possible, possible_structures
from hf_layerdrop.doctor.traps import Trap, find_traps, kinds_of

__all__ = ["Possible", "Trap", "fields_that_change", "find_traps", "kinds_of", "notes_for", "possible_structures"]
