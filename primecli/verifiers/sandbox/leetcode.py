"""The names that LeetCode gives to a class Solution, whose programs import nothing."""

from __future__ import annotations

import builtins

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing takes longer than most programs run
    from types import CodeType
    from typing import Any

MODULES = frozenset(
    (
        *("array", "bisect", "collections", "copy", "datetime", "functools", "heapq", "itertools", "json", "math"),
        *("operator", "random", "re", "string", "sys"),
    )
)
NAMES = {
    "typing": "Any Callable ClassVar DefaultDict Deque Dict FrozenSet Generator Generic Iterable Iterator List Literal "
    "Mapping MutableMapping NamedTuple NoReturn Optional Sequence Set Tuple Type TypeVar Union",
    "collections": "ChainMap Counter OrderedDict defaultdict deque namedtuple",
    "functools": "cache cached_property cmp_to_key lru_cache partial reduce total_ordering wraps",
    "itertools": "accumulate chain combinations combinations_with_replacement compress count cycle dropwhile "
    "filterfalse groupby islice pairwise permutations product repeat starmap takewhile tee zip_longest",
    "heapq": "heapify heappop heappush heappushpop heapreplace merge nlargest nsmallest",
    "bisect": "bisect_left bisect_right insort insort_left insort_right",
    "math": "ceil comb cos dist e exp fabs factorial floor fmod gcd hypot inf isqrt lcm log log10 log2 nan perm pi "
    "prod sin sqrt tan",
    "operator": "add and_ attrgetter concat contains eq floordiv ge gt itemgetter le lt mod mul ne neg or_ sub "
    "truediv xor",
    "string": "ascii_letters ascii_lowercase ascii_uppercase digits punctuation",
    "datetime": "timedelta",
    "sortedcontainers": "SortedDict SortedList SortedSet",
}
"""Names of modules first; for names in several modules, the first counts. What the program defines itself wins."""

_CODE = type((lambda: None).__code__)


class ListNode:
    """A node of LeetCode's linked lists."""

    def __init__(self, val: Any = 0, next: Any = None) -> None:
        self.val = val
        self.next = next


class TreeNode:
    """A node of LeetCode's binary trees."""

    def __init__(self, val: Any = 0, left: Any = None, right: Any = None) -> None:
        self.val = val
        self.left = left
        self.right = right


def names_for(code: CodeType) -> dict[str, Any]:
    """Those of the names that a program uses, if it defines a class Solution at its top level.

    Only modules that hold such a name are imported.
    """
    if "Solution" not in code.co_names or not any(
        type(constant) is _CODE and constant.co_name == "Solution" for constant in code.co_consts
    ):
        return {}
    used = _names(code)
    found: dict[str, Any] = {kind.__name__: kind for kind in (ListNode, TreeNode) if kind.__name__ in used}
    found |= {name: __import__(name) for name in sorted(used & MODULES)}
    for module, names in NAMES.items():
        for name in sorted(used.intersection(names.split())):
            try:
                found.setdefault(name, getattr(__import__(module), name))
            except ImportError:  # sortedcontainers may not be installed
                break
    return found


def _names(code: CodeType) -> set[str]:
    """All names that a program uses, in any scope, without those of builtins."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if type(constant) is _CODE:
            names |= _names(constant)
    return {name for name in names if not hasattr(builtins, name)}
