"""A look at a run's rows before anything is paid for: read, rendered and masked as the script does, without torch.

The very parts of the scripts decide here too, so that this machine and the run can't disagree.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location

from launcher.render import templates

if "parts" not in sys.modules:
    _folder = templates() / "parts"
    _spec = spec_from_file_location("parts", _folder / "__init__.py", submodule_search_locations=[str(_folder)])
    assert _spec is not None and _spec.loader is not None
    _parts = sys.modules["parts"] = module_from_spec(_spec)
    _spec.loader.exec_module(_parts)
