/*
 * A batch of jobs in C++: some at a time, each in a sandbox of its own, with a time limit and what it said.
 *
 *     batch [STORE [IMAGE]]
 *
 * Without an image it builds one from the host's busybox. Leaving a scope ends what was started in it, also when
 * something throws: nothing here closes anything by hand.
 */
#include <gpucontainer.hpp>

#include <future>
#include <iostream>
#include <string>
#include <vector>

namespace gpuc = gpucontainer;

/* A job: what it is called, and what it runs. */
struct Job {
    std::string name, script;
};

static gpuc::Image build(const gpuc::ImageStore &store) {
    return gpuc::ImageBuilder(store)
        .copy_following_links("/bin/busybox", "/bin/busybox")
        .symlink("busybox", "/bin/sh")
        .commit("cookbook/batch");
}

/* Runs a job to its end and says in a line what became of it. */
static std::string run(const gpuc::ImageStore &store, const gpuc::Image &image, const Job &job) {
    try {
        gpuc::SandboxBuilder builder(image);
        builder.store(store).command({"/bin/sh", "-c", job.script}).read_only(true);
        builder.stdio(0, GPUC_STDIO_NULL).stdio(1, GPUC_STDIO_PIPED).stdio(2, GPUC_STDIO_PIPED);
        const gpuc::Sandbox sandbox = builder.spawn();
        const gpuc::Output output = sandbox.communicate({}, std::chrono::seconds(30));
        const gpuc::ExitStatus status = output.status();
        if (status.signal != 0) return job.name + ": killed by signal " + std::to_string(status.signal);
        std::string said(status.code == 0 ? output.standard_output() : output.standard_error());
        said.erase(said.find_last_not_of('\n') + 1);
        return job.name + ": exit code " + std::to_string(status.code) + ", " + said;
    } catch (const gpuc::Error &error) {
        /* Of this job alone: what was wanted, which call failed, on what and why. */
        return job.name + ": " + error.what();
    }
}

int main(int count, char **words) {
    try {
        const gpuc::ImageStore store = count > 1 ? gpuc::ImageStore::open(words[1]) : gpuc::ImageStore::open();
        const gpuc::Image image = count > 2 ? store.image(words[2]) : build(store);
        const std::vector<Job> jobs = {
            {"sum", "n=0; for i in 1 2 3 4; do n=$((n + i)); done; echo $n"},
            {"writer", "echo data >/result"},
            {"killed", "kill -9 $$"},
            {"who", "echo process $$ of a network with $(/bin/busybox wc -l </proc/net/dev) lines"},
        };
        /* A start takes milliseconds and no thread of the library's; how many run at once is this program's affair. */
        std::vector<std::future<std::string>> running;
        for (const Job &job : jobs) {
            running.push_back(std::async(std::launch::async, [&] { return run(store, image, job); }));
        }
        for (std::future<std::string> &one : running) std::cout << one.get() << '\n';
        std::cout << jobs.size() << " jobs are done, and nothing of them is left\n";
    } catch (const gpuc::Error &error) {
        std::cerr << "batch: " << error.what() << '\n';
        return 1;
    }
}
