/*
 * The scenarios of tests/scenarios/scenarios.json, as C runs them. Rust and Python run the same
 * (gpucontainer/tests/scenarios.rs, tests/python/test_scenarios.py), and tests/scenarios/compare sees that all say the same.
 *
 * GPUC_SCENARIOS is the directory of the table, GPUC_SCENARIO_HOSTS one with a driver root for each machine that it names.
 */
#include "scenarios/steps.h"

/* What came of a step. */

static const char *kind_of(const gpuc_error_t *error) {
    const cJSON *one;
    cJSON_ArrayForEach(one, kinds) if (number(one) == (long long)gpuc_error_kind(error)) return one->string;
    fprintf(stderr, "the table knows no kind %d: %s\n", (int)gpuc_error_kind(error), gpuc_error_message(error));
    exit(1);
}

static cJSON *number_or_null(long value, long nothing) {
    return value == nothing ? cJSON_CreateNull() : cJSON_CreateNumber((double)value);
}

static void say(const scene_t *scene, int index, const cJSON *step, const outcome_t *outcome) {
    if (record == NULL) return;
    cJSON *all = cJSON_CreateArray();
    cJSON_AddItemToArray(all, cJSON_CreateString(scene->row));
    cJSON_AddItemToArray(all, cJSON_CreateNumber(index));
    cJSON_AddItemToArray(all, cJSON_CreateString(text(get(step, "do"))));
    if (outcome->error != NULL) {
        cJSON_AddItemToArray(all, cJSON_CreateString(kind_of(outcome->error)));
        cJSON_AddItemToArray(all, number_or_null(gpuc_error_errno(outcome->error), 0));
        cJSON_AddItemToArray(all, cJSON_CreateString(gpuc_error_message(outcome->error)));
    } else if (outcome->ended) {
        cJSON_AddItemToArray(all, number_or_null(outcome->status.code, -1));
        cJSON_AddItemToArray(all, number_or_null(outcome->status.signal, 0));
        cJSON_AddItemToArray(all, cJSON_CreateBool(outcome->status.oom_killed));
        cJSON_AddItemToArray(all, cJSON_CreateString(outcome->out == NULL ? "" : outcome->out));
        cJSON_AddItemToArray(all, cJSON_CreateString(outcome->err == NULL ? "" : outcome->err));
    } else {
        cJSON_AddItemToArray(all, number_or_null(outcome->count, -1));
        bool loose = cJSON_IsTrue(get(step, "loose"));
        cJSON_AddItemToArray(all, loose ? cJSON_CreateNull() : cJSON_CreateString(outcome->text == NULL ? "" : outcome->text));
    }
    char *line = cJSON_PrintUnformatted(all);
    line = replaced(line, scene->directory, "$DIR");
    line = replaced(line, data, "$DATA");
    if (scene->port[0] != '0') line = replaced(line, scene->port, "$PORT");
    fprintf(record, "%s\n", line);
    free(line);
    cJSON_Delete(all);
}

static bool has(const char *said, const cJSON *parts) {
    const cJSON *part;
    cJSON_ArrayForEach(part, parts) if (said == NULL || strstr(said, text(part)) == NULL) return false;
    return true;
}

static bool same(const char *said, const cJSON *wanted) { return strcmp(said == NULL ? "" : said, text(wanted)) == 0; }

static bool json_says(const char *said, const cJSON *pointers) {
    cJSON *all = cJSON_Parse(said);
    const cJSON *one;
    bool good = true;
    cJSON_ArrayForEach(one, pointers) {
        const cJSON *found = all;
        char path[256], *rest;
        snprintf(path, sizeof path, "%s", one->string + 1);
        for (char *name = strtok_r(path, "/", &rest); name != NULL; name = strtok_r(NULL, "/", &rest)) found = get(found, name);
        good = good && cJSON_Compare(found, one, true);
    }
    cJSON_Delete(all);
    return good;
}

static bool is_so(const char *key, const cJSON *value, const outcome_t *outcome) {
    bool exited = outcome->ended && outcome->status.signal == 0;
    if (strcmp(key, "error") == 0) return outcome->error != NULL && strcmp(kind_of(outcome->error), text(value)) == 0;
    if (strcmp(key, "says") == 0) return has(gpuc_error_message(outcome->error), value);
    if (strcmp(key, "errno") == 0) return gpuc_error_errno(outcome->error) == number(value);
    if (strcmp(key, "code") == 0) return exited && outcome->status.code == number(value);
    if (strcmp(key, "signal") == 0) return outcome->ended && outcome->status.signal == number(value);
    if (strcmp(key, "oom") == 0) return outcome->ended && outcome->status.oom_killed == cJSON_IsTrue(value);
    if (strcmp(key, "stdout") == 0) return same(outcome->out, value);
    if (strcmp(key, "stderr") == 0) return same(outcome->err, value);
    if (strcmp(key, "text") == 0) return same(outcome->text, value);
    if (strcmp(key, "stdout_has") == 0) return has(outcome->out, value);
    if (strcmp(key, "stderr_has") == 0) return has(outcome->err, value);
    if (strcmp(key, "text_has") == 0) return has(outcome->text, value);
    if (strcmp(key, "count") == 0) return outcome->count == number(value);
    if (strcmp(key, "json") == 0) return json_says(outcome->text, value);
    unknown("expectation", key);
    return false;
}

static void check(const scene_t *scene, int index, const cJSON *step, const outcome_t *outcome) {
    const cJSON *expected = get(step, "expect"), *one;
    const char *message = outcome->error == NULL ? "" : gpuc_error_message(outcome->error);
    bool good = outcome->error == NULL || get(expected, "error") != NULL;
    const char *which = "no error";
    cJSON_ArrayForEach(one, expected) {
        if (!good) break;
        which = one->string;
        good = is_so(which, one, outcome);
    }
    if (good) return;
    char *wanted = cJSON_PrintUnformatted(expected);
    fprintf(stderr, "%s, step %d: %s is not so of %s: %s %d %d \"%s\" \"%s\" \"%s\" %ld\n", scene->row, index, which, wanted,
            message, outcome->status.code, outcome->status.signal, outcome->out, outcome->err, outcome->text, outcome->count);
    exit(1);
}

static int forget(const char *path, const struct stat *status, int flag, struct FTW *walk) {
    (void)status, (void)flag, (void)walk;
    return remove(path);
}

static void write_file(const char *path, const char *words) {
    FILE *file = fopen(path, "w");
    CHECK(file != NULL && fputs(words, file) >= 0 && fclose(file) == 0);
}

static void prepare(scene_t *scene, const cJSON *row) {
    char *path = format("%s/host", scene->directory);
    CHECK(mkdir(path, 0755) == 0);
    free(path);
    path = format("%s/host/greeting", scene->directory);
    write_file(path, "from the host\n");
    free(path);
    path = format("mkdir -p %s/root/bin && cp %s %s/root/bin/sh", scene->directory, busybox, scene->directory);
    CHECK(system(path) == 0);
    free(path);
    char *said = cJSON_PrintUnformatted(row);
    if (strstr(said, "$PORT") != NULL) greet(scene);
    free(said);
    gpuc_error_t *error;
    path = format("%s/store", scene->directory);
    scene->store = gpuc_image_store_open(path, &error);
    CHECK_NO_ERROR(error);
    free(path);
    const cJSON *host = get(row, "host");
    if (host == NULL) return;
    snprintf(scene->driver, sizeof scene->driver, "%s/%s", getenv("GPUC_SCENARIO_HOSTS"), text(host));
    path = format("%s/leases", scene->directory);
    scene->allocator = gpuc_gpu_allocator_open_at(path, &error);
    CHECK_NO_ERROR(error);
    free(path);
    CHECK(gpuc_gpu_allocator_set_driver_root(scene->allocator, scene->driver, &error) == 0);
    gpuc_gpu_allocator_set_respect_outer(scene->allocator, false);
}

static void finish(scene_t *scene) {
    for (size_t index = 0; index < PLACES; index++) {
        gpuc_published_free(scene->published[index]);
        gpuc_reservation_free(scene->reservations[index]);
        gpuc_sandbox_free(scene->sandboxes[index]);
        gpuc_network_member_free(scene->members[index]);
        gpuc_gpu_ticket_free(scene->tickets[index]);
        gpuc_gpu_lease_free(scene->leases[index]);
        gpuc_mig_lease_free(scene->mig[index]);
        if (index < scene->granted) gpuc_gpu_grant_free(scene->grants[index]);
    }
    gpuc_gpu_allocator_free(scene->allocator);
    gpuc_image_free(scene->image);
    gpuc_image_store_free(scene->store);
    ungreet(scene);
    CHECK(nftw(scene->directory, forget, 32, FTW_DEPTH | FTW_PHYS) == 0);
}

static void run(const cJSON *row, const cJSON *image) {
    scene_t scene;
    memset(&scene, 0, sizeof scene);
    scene.row = text(get(row, "name"));
    strcpy(scene.directory, "/var/tmp/gpuc-scenario-XXXXXX");
    strcpy(scene.port, "0");
    CHECK(mkdtemp(scene.directory) != NULL);
    prepare(&scene, row);
    gpuc_error_t *error;
    cJSON *described_image = whole(&scene, image);
    scene.image = build(&scene, described_image, "fixture:1", &error);
    CHECK_NO_ERROR(error);
    cJSON_Delete(described_image);
    int index = 0;
    const cJSON *one;
    cJSON_ArrayForEach(one, get(row, "steps")) {
        cJSON *step = whole(&scene, one);
        outcome_t outcome;
        memset(&outcome, 0, sizeof outcome);
        outcome.count = -1;
        act(&scene, step, &outcome);
        if (outcome.error != NULL) outcome.count = -1;
        say(&scene, index, step, &outcome);
        check(&scene, index++, step, &outcome);
        gpuc_error_free(outcome.error);
        free(outcome.out);
        free(outcome.err);
        free(outcome.text);
        cJSON_Delete(step);
    }
    finish(&scene);
}

int main(void) {
    data = getenv("GPUC_SCENARIOS");
    if (data == NULL || access(busybox, X_OK) != 0) {
        printf("SKIP scenarios: %s\n", data == NULL ? "GPUC_SCENARIOS does not say where the table is" : "no busybox");
        return 0;
    }
    const char *record_path = getenv("GPUC_SCENARIOS_RECORD"), *only = getenv("GPUC_SCENARIO");
    record = record_path == NULL ? NULL : fopen(record_path, "w");
    char *path = format("%s/scenarios.json", data);
    FILE *file = fopen(path, "r");
    CHECK(file != NULL);
    static char said[1 << 20];
    CHECK(fread(said, 1, sizeof said - 1, file) < sizeof said - 1);
    fclose(file);
    free(path);
    cJSON *table = cJSON_Parse(said);
    CHECK(table != NULL);
    kinds = get(table, "kinds");
    const cJSON *row, *need, *rows = get(table, "rows");
    int ran = 0;
    cJSON_ArrayForEach(row, rows) {
        if (only != NULL && strcmp(only, text(get(row, "name"))) != 0) continue;
        ran++;
        const char *why = NULL;
        cJSON_ArrayForEach(need, get(row, "needs")) {
            CHECK(strcmp(text(need), "root") == 0);
            if (geteuid() != 0) why = "not root";
        }
        if (why == NULL && get(row, "host") != NULL && getenv("GPUC_SCENARIO_HOSTS") == NULL) why = "no stand-ins for GPUs";
        if (why != NULL) {
            printf("SKIP scenario \"%s\": %s\n", text(get(row, "name")), why);
            if (record != NULL) fprintf(record, "[\"%s\",\"skipped\",\"%s\"]\n", text(get(row, "name")), why);
            continue;
        }
        int before = open_descriptors();
        run(row, get(table, "image"));
        if (open_descriptors() != before) {
            fprintf(stderr, "%s: descriptors are left open\n", text(get(row, "name")));
            return 1;
        }
    }
    /* Every row runs or says why not. */
    CHECK(only != NULL ? ran == 1 : ran == cJSON_GetArraySize(rows));
    cJSON_Delete(table);
    if (record != NULL) fclose(record);
    return 0;
}
