// One rank of a C++ program, as test_ranks.py starts several.
//
// Usage: torch_ranks SCENARIO STORE RANK WORLD FOLDER
//   STORE     host: rank 0 hosts a TCPStore, whose port it writes to FOLDER/port
//             tcp:PORT: somebody else hosts it
//             file:PATH: a FileStore
//   SCENARIO  see main(). What it prints is what the test looks at; ends with 1 when something is wrong.
#include <torch/torch.h>
#include <torchsnapshot/torch.h>
#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <string>
#include <thread>

namespace ts = torchsnapshot::libtorch;
using torchsnapshot::Error;
using torchsnapshot::ErrorCode;

namespace {

constexpr std::int64_t kRows = 12;  // of the table that the ranks share
constexpr std::int64_t kBig = 3 << 20;

struct Arguments {
  std::string store;
  std::int64_t rank = 0;
  std::int64_t world = 0;
  std::string folder;
};

void require(bool truth, const char* what) {
  if (!truth) throw std::runtime_error(std::string("does not hold: ") + what);
}

c10::intrusive_ptr<c10d::Store> open_store(const Arguments& arguments) {
  const std::string& name = arguments.store;
  if (name.starts_with("file:")) {
    return c10::make_intrusive<c10d::FileStore>(name.substr(5), static_cast<int>(arguments.world));
  }
  c10d::TCPStoreOptions options;
  options.waitWorkers = false;
  options.timeout = std::chrono::seconds(60);
  const std::string port_file = arguments.folder + "/port";
  if (name == "host" && arguments.rank == 0) {
    options.port = 0;
    options.isServer = true;
    auto store = c10::make_intrusive<c10d::TCPStore>("127.0.0.1", options);
    std::ofstream(port_file + ".new") << store->getPort();
    std::filesystem::rename(port_file + ".new", port_file);
    return store;
  }
  int port = 0;
  if (name == "host") {
    while (!(std::ifstream(port_file) >> port)) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  } else {
    port = std::stoi(name.substr(4));
  }
  options.port = static_cast<std::uint16_t>(port);
  return c10::make_intrusive<c10d::TCPStore>("127.0.0.1", options);
}

/// What a rank has: a model that all have alike, its rows of a table, and values of its own. `fresh`: other values
/// everywhere, to be restored into.
struct State {
  State(std::int64_t rank, std::int64_t world, bool fresh) {
    torch::manual_seed(static_cast<std::uint64_t>(fresh ? 100 + rank : 1));
    model = torch::nn::Linear(8, 4);
    optimizer = std::make_unique<torch::optim::AdamW>(model->parameters(), torch::optim::AdamWOptions(0.01));
    if (!fresh) {
      torch::mse_loss(model(torch::ones({2, 8})), torch::zeros({2, 4})).backward();
      optimizer->step();
    }
    const std::int64_t first = kRows * rank / world;
    rows =
        torch::arange(kRows * 3, torch::kFloat).reshape({kRows, 3}).slice(0, first, kRows * (rank + 1) / world).clone();
    if (fresh) rows.fill_(-1);
    table["rows"] = ts::to_ivalue({.tensor = rows, .shape = {kRows, 3}, .offsets = {first, 0}});
    own["rank"] = fresh ? -1 : rank;
    own["data"] = torch::full({3}, fresh ? -1.0 : static_cast<double>(rank));
    big["x"] = torch::arange(kBig, torch::kInt) * (fresh ? 0 : 1);
    // Not in the same order on all ranks.
    if (rank % 2 == 0) app.add({"model", model});
    app.add({"table", table});
    app.add({"own", own});
    app.add({"optim", *optimizer});
    app.add({"big", big});
    if (rank % 2 != 0) app.add({"model", model});
    app.add({"rng", ts::RNGState()});
  }
  State(const State&) = delete;

  [[nodiscard]] bool shares_what(const State& other) const {
    return torch::equal(model->weight, other.model->weight) && torch::equal(rows, other.rows) &&
           torch::equal(big.get<at::Tensor>("x"), other.big.get<at::Tensor>("x"));
  }
  [[nodiscard]] bool equals(const State& other) const {
    const auto& momentum = [](const State& state) {
      return static_cast<torch::optim::AdamWParamState&>(
                 *state.optimizer->state().at(state.model->weight.unsafeGetTensorImpl()))
          .exp_avg();
    };
    return shares_what(other) && own.get<std::int64_t>("rank") == other.own.get<std::int64_t>("rank") &&
           torch::equal(own.get<at::Tensor>("data"), other.own.get<at::Tensor>("data")) &&
           torch::equal(momentum(*this), momentum(other));
  }

  torch::nn::Linear model{nullptr};
  std::unique_ptr<torch::optim::AdamW> optimizer;
  at::Tensor rows;
  ts::StateDict table;
  ts::StateDict own;
  ts::StateDict big;
  ts::AppState app;
};

ts::TakeOptions take_options(const std::shared_ptr<torchsnapshot::Coordinator>& ranks) {
  ts::TakeOptions options;
  options.replicated = {"model/**", "optim/**", "big/*"};
  options.coordinator = ranks;
  options.commit_timeout = std::chrono::seconds(60);
  return options;
}

/// A state that fails, or ends the process.
struct Trap {
  std::function<void()> spring;
  ts::StateDict state_dict() const {
    if (spring) spring();
    return {{"x", 1}};
  }
  void load_state_dict(const ts::StateDict&) const {
    if (spring) spring();
  }
};

[[noreturn]] void die() {
  std::raise(SIGKILL);
  std::abort();
}

/// The first line of the message of the Error that `body` throws.
std::string error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    const std::string text = error.what();
    return text.substr(0, text.find('\n'));
  }
  throw std::runtime_error("no error");
}

/// Take, async_take and restore, and that a change after async_take is not in it.
void everything(const Arguments& a, const c10::intrusive_ptr<c10d::Store>& store) {
  const auto ranks = ts::make_coordinator(store, a.rank, a.world);
  State state(a.rank, a.world, false);
  const State same(a.rank, a.world, false);
  ts::Snapshot::take(a.folder + "/snap" + (a.rank == 0 ? "" : "-of-another-path"), state.app, take_options(ranks));

  const auto pending = ts::Snapshot::async_take(a.folder + "/async", state.app, take_options(ranks));
  {
    const torch::NoGradGuard no_grad;
    state.model->weight.zero_();
    state.rows.zero_();
  }
  // The next exchanges, while the other take is pending.
  State second(a.rank, a.world, true);
  ts::RestoreOptions options;
  options.coordinator = ranks;
  const auto report = ts::Snapshot(a.folder + "/snap").restore(second.app, options);
  require(second.equals(same), "take and restore");
  require(report.missing.empty() && report.mismatched.empty(), "a report of nothing missing");
  for (const std::string& path : report.unexpected) {
    require(path.starts_with("optim/state"), "a report of nothing but what the optimizer makes later");
  }
  pending.wait();
  State third(a.rank, a.world, true);
  ts::Snapshot(a.folder + "/async").restore(third.app, options);
  require(third.equals(same), "async_take and restore");
  const ts::StateDict own = ts::Snapshot(a.folder + "/snap").read_state("own", {.rank = (a.rank + 1) % a.world});
  require(own.get<std::int64_t>("rank") == (a.rank + 1) % a.world, "read_state of another rank");
  std::cout << "fine\n";
}

/// Rank 1 fails in state_dict() or, restoring, can't take what was saved: an error on all, and the next works.
void errors(const Arguments& a, const c10::intrusive_ptr<c10d::Store>& store) {
  const auto ranks = ts::make_coordinator(store, a.rank, a.world);
  Trap trap;
  const ts::AppState app{{"x", trap}};
  if (a.rank == 1) trap.spring = [] { throw std::runtime_error("the trap has sprung"); };
  try {
    ts::Snapshot::take(a.folder + "/snap", app, take_options(ranks));
    require(false, "an error");
  } catch (const Error& error) {
    std::cout << error.what() << "\n";
  } catch (const std::runtime_error& error) {
    std::cout << error.what() << "\n";
  }
  trap.spring = nullptr;
  ts::Snapshot::take(a.folder + "/snap", app, take_options(ranks));
  ts::StateDict other{{"x", 2}};
  torch::nn::Linear model(2, 2);
  ts::RestoreOptions options;
  options.coordinator = ranks;
  const ts::AppState target = a.rank == 1 ? ts::AppState{{"x", model}} : ts::AppState{{"x", other}};
  std::cout << error_of([&] { ts::Snapshot(a.folder + "/snap").restore(target, options); }) << "\n";
  require(other.get<int>("x") == 2, "nothing was changed");
  ts::Snapshot(a.folder + "/snap").restore({{"x", other}}, options);
  require(other.get<int>("x") == 1, "the next restore");
}

/// Rank `who` is killed before it joins the take; the others see it after their patience.
void dies_before(const Arguments& a, const c10::intrusive_ptr<c10d::Store>& store, std::int64_t who) {
  const auto ranks = ts::make_coordinator(store, a.rank, a.world, std::chrono::seconds(2));
  Trap trap;
  if (a.rank == who) trap.spring = die;
  (void)ranks->gather({});  // rank 0 knows that all have connected
  const ts::AppState app{{"x", trap}};
  const auto take = [&] { ts::Snapshot::take(a.folder + "/snap", app, take_options(ranks)); };
  std::cout << error_of(take) << "\n";
  std::cout << error_of(take) << "\n";
}

/// Rank 2 is killed while it writes.
void dies_writing(const Arguments& a, const c10::intrusive_ptr<c10d::Store>& store) {
  const auto ranks = ts::make_coordinator(store, a.rank, a.world);
  auto options = take_options(ranks);
  options.commit_timeout = std::chrono::seconds(2);
  if (a.rank == 2) options.io.on_progress = [](const torchsnapshot::Progress&) { die(); };
  const State state(a.rank, a.world, false);
  const auto pending = ts::Snapshot::async_take(a.folder + "/snap", state.app, options);
  std::cout << error_of([&] { pending.wait(); }) << "\n";
}

/// Large messages, and many.
void exchanges(const Arguments& a, const c10::intrusive_ptr<c10d::Store>& store) {
  const auto ranks = ts::make_coordinator(c10::make_intrusive<c10d::PrefixStore>("p", store), a.rank, a.world);
  const auto other = ts::make_coordinator(store, a.rank, a.world);
  const auto text = [](std::int64_t rank, std::size_t size) {
    return std::string(size, static_cast<char>('a' + rank));
  };
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{4 << 20}, std::size_t{9 << 20}}) {
    require(ranks->broadcast(text(a.rank, size)) == text(0, size), "broadcast");
    require(other->broadcast(text(a.rank, 3)) == text(0, 3), "broadcast of another coordinator");
    const auto gathered = ranks->gather(text(a.rank, size));
    require(gathered.size() == static_cast<std::size_t>(a.rank == 0 ? a.world : 0), "gather");
    const auto all = ranks->all_gather(text(a.rank, 2), 2);
    for (std::int64_t rank = 0; rank < a.world; ++rank) {
      if (a.rank == 0) require(gathered.at(static_cast<std::size_t>(rank)) == text(rank, size), "gather's bytes");
      require(all.at(static_cast<std::size_t>(rank)) == text(rank, 2), "all_gather");
    }
  }
  torchsnapshot::KeyValueStore& values = ranks->store();
  require(!values.get("k" + std::to_string(a.rank)), "a key that nobody has set");
  values.set("k" + std::to_string(a.rank), "v");
  require(values.get("k" + std::to_string(a.rank)) == "v", "a key that was set");
  values.add("n", 2);
  const std::string won = values.set_once("winner", std::to_string(a.rank));
  (void)ranks->broadcast({});  // all have
  ranks->all_gather({}, 0);
  require(values.add("n", 0) == 2 * a.world, "add");
  const auto winners = ranks->all_gather(won, 8);
  for (const std::string& winner : winners) require(winner == won, "one winner");
  values.remove("k" + std::to_string(a.rank));
  require(!values.get("k" + std::to_string(a.rank)), "a key that was removed");
  std::cout << "fine\n";
}

/// Restores what Python has taken; what this rank has goes into the snapshot "cpp", for Python to compare.
void from_python(const Arguments& a, const c10::intrusive_ptr<c10d::Store>& store) {
  const auto ranks = ts::make_coordinator(store, a.rank, a.world);
  State state(a.rank, a.world, true);
  ts::RestoreOptions options;
  options.coordinator = ranks;
  const auto report = ts::Snapshot(a.folder + "/python").restore(state.app, options);
  for (const std::string& path : report.missing) std::cout << path << "\n";
  const ts::Snapshot taken = ts::Snapshot::take(a.folder + "/cpp", state.app, take_options(ranks));
  require(taken.metadata()->world_size == a.world, "a snapshot of all ranks");
}

void run(const std::string& scenario, const Arguments& arguments) {
  const auto store = open_store(arguments);
  const std::map<std::string, std::function<void()>> scenarios{
      {"everything", [&] { everything(arguments, store); }},
      {"errors", [&] { errors(arguments, store); }},
      {"dies-before", [&] { dies_before(arguments, store, 2); }},
      {"host-dies", [&] { dies_before(arguments, store, 0); }},
      {"dies-writing", [&] { dies_writing(arguments, store); }},
      {"exchanges", [&] { exchanges(arguments, store); }},
      {"from-python", [&] { from_python(arguments, store); }},
  };
  scenarios.at(scenario)();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) {
    std::cerr << "usage: torch_ranks SCENARIO STORE RANK WORLD FOLDER\n";
    return 2;
  }
  try {
    torch::set_num_threads(1);
    run(argv[1], {.store = argv[2], .rank = std::stoll(argv[3]), .world = std::stoll(argv[4]), .folder = argv[5]});
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "torch_ranks " << argv[3] << ": " << error.what() << "\n";
    return 1;
  }
}
