"""Writes a C program that calls every function of the header with NULL and 0 for everything, and once more with an object
as the first argument where one can be made without a sandbox: `nulls.py HEADER >PROGRAM.c`.

A call that can fail must do so with an error of a kind, or succeed without one; what it returns is freed.
"""

import re
import sys
from pathlib import Path

text = re.sub(r"/\*.*?\*/", "", Path(sys.argv[1]).read_text(), flags=re.DOTALL)
functions = re.findall(r"^((?:const )?\w+ \**)\s*(gpuc_\w+)\s*\(([^;{}]*)\);", text, re.MULTILINE)
names = [name for _, name, _ in functions]
declared = set(re.findall(r"\b(gpuc_\w+)\s*\(", text)) - {"gpuc_progress_t"}
assert set(names) == declared, declared.symmetric_difference(names)


def freed(result: str) -> str | None:
    """The function that frees what a function returns, or None."""
    if result == "char *":
        return "gpuc_string_free"
    if match := re.fullmatch(r"(gpuc_\w+)_t \*", result):
        assert f"{match[1]}_free" in names, result
        return f"{match[1]}_free"
    return None


print("#include <gpucontainer.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <unistd.h>\n")
print("static void fail(const char *name, const char *why, gpuc_error_t *error) {")
print('    fprintf(stderr, "%s %s: %s\\n", name, why, gpuc_error_message(error));\n    exit(1);\n}\n')
print("static void check(const char *name, int failed, gpuc_error_t *error) {")
print('    if (failed && error == NULL) fail(name, "failed without an error", error);')
print('    if (!failed && error != NULL) fail(name, "has an error and did not fail", error);')
print('    if (failed && gpuc_error_kind(error) == GPUC_ERROR_INTERNAL) fail(name, "found a bug", error);')
print("    gpuc_error_free(error);\n}\n")
# Objects that can be made at once. What they describe cannot be started.
OBJECTS = {
    "gpuc_cancel_t": "gpuc_cancel_new()",
    "gpuc_config_t": 'gpuc_config_new_from_directory("/nowhere", NULL)',
    "gpuc_exec_t": "gpuc_exec_new(words)",
    "gpuc_gpu_request_t": 'gpuc_gpu_request_new("all")',
    "gpuc_host_t": "gpuc_host_probe(NULL)",
    "gpuc_image_builder_t": "gpuc_image_builder_new(store, NULL)",
    "gpuc_image_store_t": "gpuc_image_store_open(NULL, NULL)",
    "gpuc_limits_t": "gpuc_limits_new()",
    "gpuc_transfer_t": "gpuc_transfer_new()",
}


def call(result: str, name: str, values: list[str], can_fail: bool) -> None:
    free = freed(result)
    line = f"{name}({', '.join([*values[:-1], '&error'] if can_fail else values)})"
    if result == "void":
        print(f"    {line};")
        return
    print(f"    {{\n        {result}{'' if result.endswith('*') else ' '}value = {line};")
    if can_fail:
        # The kinds of result have one value each that says "failed"; 0 is one for ports and for yes and no.
        failed = "value == NULL" if result.endswith("*") else "value < 0" if result in ("int", "int64_t") else "!value"
        print(f'        check("{name}", {failed}, error);')
    print(f"        {free}(value);\n    }}" if free else "        (void)value;\n    }")


print("int main(void) {\n    gpuc_error_t *error;")
print('    const char *const words[] = {"true", NULL};')
print("    gpuc_image_store_t *store = gpuc_image_store_open(NULL, NULL);\n    if (store == NULL) return 1;")
for result, name, parameters in functions:
    types = [] if parameters.strip() == "void" else [" ".join(one.split()) for one in parameters.split(",")]
    can_fail = bool(types) and types[-1] == "gpuc_error_t **error"
    values = ["NULL" if "*" in one or one.startswith("gpuc_progress_t") else "0" for one in types]
    call(result.strip(), name, values, False)
    if can_fail:
        call(result.strip(), name, values, True)
    first = re.fullmatch(r"(const )?(gpuc_\w+) \*\w+", types[0]) if types else None
    if first and first[2] in OBJECTS and name != f"{first[2][:-2]}_free":
        print(f"    {first[2]} *object_{name} = {OBJECTS[first[2]]};")
        call(result.strip(), name, [f"object_{name}", *values[1:]], can_fail)
        if first[2] == "gpuc_config_t":
            print(f"    gpuc_string_free(gpuc_config_explain(object_{name}, NULL));")
        print(f"    {first[2][:-2]}_free(object_{name});")
print("    gpuc_image_store_free(store);")
print(f'    printf("%d functions\\n", {len(names)});\n    return 0;\n}}')
