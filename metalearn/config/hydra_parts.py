"""What we use of Hydra beyond `hydra.errors` and `hydra.utils`: where Hydra moves a part, this file changes.

Nothing else may import from the rest of `hydra`.
"""

from hydra._internal.callbacks import Callbacks as Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl as ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository as ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl as ConfigSearchPathImpl
from hydra._internal.core_plugins.basic_launcher import BasicLauncher as BasicLauncher
from hydra._internal.hydra import Hydra as Hydra
from hydra.core.global_hydra import GlobalHydra as GlobalHydra
from hydra.core.hydra_config import HydraConfig as HydraConfig
from hydra.core.object_type import ObjectType as ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser as OverridesParser
from hydra.core.override_parser.types import Glob as Glob
from hydra.core.override_parser.types import Override as Override
from hydra.core.override_parser.types import RangeSweep as RangeSweep
from hydra.core.override_parser.types import Sweep as Sweep
from hydra.core.plugins import Plugins as Plugins
from hydra.core.utils import setup_globals as setup_globals
from hydra.plugins.config_source import ConfigResult as ConfigResult
from hydra.types import HydraContext as HydraContext
from hydra.types import RunMode as RunMode
