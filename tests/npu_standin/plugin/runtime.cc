// SPDX-License-Identifier: Apache-2.0
// A device called "npu" that lives in host memory: streams and events do nothing, collectives go through POSIX shared
// memory. It stands in for an Ascend card in tests; it says nothing about the speed or the limits of a real one.

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>
#include <string>

#include "paddle/phi/backends/device_ext.h"

namespace {

constexpr size_t kSlotBytes = 1 << 20;
constexpr size_t kMaxRanks = 8;
constexpr size_t kTotalMemory = size_t(64) << 30;
constexpr int kPatienceSeconds = 60;
thread_local int current_device = 0;
std::atomic<size_t> allocated{0};

// What all ranks of one communicator see. A fresh file is all zeros, which is the start state.
struct Board {
  std::atomic<uint32_t> arrived;
  std::atomic<uint32_t> round;
  std::atomic<uint32_t> mail[kMaxRanks][kMaxRanks];  // 1: a letter from [sender] to [receiver] lies in its box
  unsigned char slot[kMaxRanks][kSlotBytes];
  unsigned char box[kMaxRanks][kMaxRanks][kSlotBytes];
};

struct Comm {
  Board* board;
  size_t rank, ranks;
  std::string name;
};

Comm* Of(C_CCLComm comm) { return reinterpret_cast<Comm*>(comm); }

// Waits until `done` holds; a partner that died must not hang the tests.
template <typename Done>
bool Wait(Done done) {
  const time_t start = time(nullptr);
  for (size_t turn = 0; !done(); ++turn) {
    sched_yield();
    if ((turn & 0xffff) == 0 && time(nullptr) - start > kPatienceSeconds) return false;
  }
  return true;
}

bool Barrier(Comm* comm) {
  Board* board = comm->board;
  const uint32_t round = board->round.load();
  if (board->arrived.fetch_add(1) + 1 == comm->ranks) {
    board->arrived.store(0);
    board->round.fetch_add(1);
    return true;
  }
  return Wait([&] { return board->round.load() != round; });
}

size_t Width(C_DataType type) {
  switch (type) {
    case BOOL: case UINT8: case INT8: return 1;
    case UINT16: case INT16: case FLOAT16: case BFLOAT16: return 2;
    case UINT32: case INT32: case FLOAT32: return 4;
    default: return 8;
  }
}

template <typename T>
void Fold(C_CCLReduceOp op, const void* from, void* into, size_t count) {
  const T* a = static_cast<const T*>(from);
  T* b = static_cast<T*>(into);
  for (size_t i = 0; i < count; ++i) {
    switch (op) {
      case MAX: b[i] = std::max(a[i], b[i]); break;
      case MIN: b[i] = std::min(a[i], b[i]); break;
      case PRODUCT: b[i] = static_cast<T>(a[i] * b[i]); break;
      default: b[i] = static_cast<T>(a[i] + b[i]);
    }
  }
}

float Widen(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

uint16_t Narrow(float value) {
  uint32_t wide;
  std::memcpy(&wide, &value, 4);
  return static_cast<uint16_t>((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);
}

bool Combine(C_DataType type, C_CCLReduceOp op, const void* from, void* into, size_t count) {
  switch (type) {
    case FLOAT32: Fold<float>(op, from, into, count); return true;
    case FLOAT64: Fold<double>(op, from, into, count); return true;
    case INT64: Fold<int64_t>(op, from, into, count); return true;
    case INT32: Fold<int32_t>(op, from, into, count); return true;
    case UINT8: case BOOL: Fold<uint8_t>(op, from, into, count); return true;
    case BFLOAT16:
      for (size_t i = 0; i < count; ++i) {
        const float a = Widen(static_cast<const uint16_t*>(from)[i]);
        float b = Widen(static_cast<uint16_t*>(into)[i]);
        Fold<float>(op, &a, &b, 1);
        static_cast<uint16_t*>(into)[i] = Narrow(b);
      }
      return true;
    default:
      std::fprintf(stderr, "stand-in npu: no reduction of data type %d\n", int(type));
      return false;
  }
}

template <typename T>
void Share(T* values, size_t count, size_t ranks) {
  for (size_t i = 0; i < count; ++i) values[i] /= static_cast<T>(ranks);
}

// Every collective is this: all write a piece of their buffer into their slot, all read what they need.
template <typename Read>
C_Status Exchange(Comm* comm, const void* send, size_t bytes, size_t unit, Read read) {
  const size_t piece = kSlotBytes / unit * unit;
  for (size_t at = 0; at < bytes; at += piece) {
    const size_t size = std::min(piece, bytes - at);
    if (send) std::memcpy(comm->board->slot[comm->rank], static_cast<const char*>(send) + at, size);
    if (!Barrier(comm)) return C_FAILED;
    if (!read(at, size)) return C_ERROR;
    if (!Barrier(comm)) return C_FAILED;
  }
  return C_SUCCESS;
}

C_Status AllReduce(void* send, void* recv, size_t count, C_DataType type, C_CCLReduceOp op, C_CCLComm handle, C_Stream) {
  Comm* comm = Of(handle);
  const size_t unit = Width(type);
  auto status = Exchange(comm, send, count * unit, unit, [&](size_t at, size_t size) {
    char* out = static_cast<char*>(recv) + at;
    std::memcpy(out, comm->board->slot[0], size);  // the same order on every rank, so all get the same bits
    for (size_t rank = 1; rank < comm->ranks; ++rank)
      if (!Combine(type, op, comm->board->slot[rank], out, size / unit)) return false;
    return true;
  });
  if (op == AVG && type == FLOAT32) Share(static_cast<float*>(recv), count, comm->ranks);
  if (op == AVG && type != FLOAT32) return C_ERROR;
  return status;
}

C_Status Reduce(void* send, void* recv, size_t count, C_DataType type, C_CCLReduceOp op, size_t root, C_CCLComm handle,
                C_Stream stream) {
  if (Of(handle)->rank == root) return AllReduce(send, recv, count, type, op, handle, stream);
  std::string scratch(count * Width(type), '\0');
  return AllReduce(send, &scratch[0], count, type, op, handle, stream);
}

C_Status Broadcast(void* buf, size_t count, C_DataType type, size_t root, C_CCLComm handle, C_Stream) {
  Comm* comm = Of(handle);
  return Exchange(comm, comm->rank == root ? buf : nullptr, count * Width(type), 1, [&](size_t at, size_t size) {
    if (comm->rank != root) std::memcpy(static_cast<char*>(buf) + at, comm->board->slot[root], size);
    return true;
  });
}

C_Status AllGather(void* send, void* recv, size_t count, C_DataType type, C_CCLComm handle, C_Stream) {
  Comm* comm = Of(handle);
  const size_t bytes = count * Width(type);
  return Exchange(comm, send, bytes, 1, [&](size_t at, size_t size) {
    for (size_t rank = 0; rank < comm->ranks; ++rank)
      std::memcpy(static_cast<char*>(recv) + rank * bytes + at, comm->board->slot[rank], size);
    return true;
  });
}

C_Status ReduceScatter(void* send, void* recv, size_t count, C_DataType type, C_CCLReduceOp op, C_CCLComm handle,
                       C_Stream stream) {
  Comm* comm = Of(handle);
  const size_t bytes = count * Width(type);
  std::string all(bytes * comm->ranks, '\0');
  auto status = AllReduce(send, &all[0], count * comm->ranks, type, op, handle, stream);
  std::memcpy(recv, &all[comm->rank * bytes], bytes);
  return status;
}

C_Status Send(void* buf, size_t count, C_DataType type, size_t to, C_CCLComm handle, C_Stream) {
  Comm* comm = Of(handle);
  auto& flag = comm->board->mail[comm->rank][to];
  const size_t bytes = count * Width(type);
  for (size_t at = 0; at < bytes; at += kSlotBytes) {
    if (!Wait([&] { return flag.load() == 0; })) return C_FAILED;
    std::memcpy(comm->board->box[comm->rank][to], static_cast<char*>(buf) + at, std::min(kSlotBytes, bytes - at));
    flag.store(1);
  }
  return C_SUCCESS;
}

C_Status Recv(void* buf, size_t count, C_DataType type, size_t from, C_CCLComm handle, C_Stream) {
  Comm* comm = Of(handle);
  auto& flag = comm->board->mail[from][comm->rank];
  const size_t bytes = count * Width(type);
  for (size_t at = 0; at < bytes; at += kSlotBytes) {
    if (!Wait([&] { return flag.load() == 1; })) return C_FAILED;
    std::memcpy(static_cast<char*>(buf) + at, comm->board->box[from][comm->rank], std::min(kSlotBytes, bytes - at));
    flag.store(0);
  }
  return C_SUCCESS;
}

// What the processes send each other, by the name of the collective: calls, and bytes of the tensor that was given.
struct Traffic {
  const char* name;
  std::atomic<long> calls{0}, bytes{0};
};
Traffic traffic[] = {{"all_reduce"}, {"broadcast"}, {"reduce"}, {"all_gather"}, {"reduce_scatter"}};

void Sent(int which, size_t count, C_DataType type) {
  traffic[which].calls += 1;
  traffic[which].bytes += count * Width(type);
}

C_Status CountedAllReduce(void* send, void* recv, size_t count, C_DataType type, C_CCLReduceOp op, C_CCLComm handle,
                          C_Stream stream) {
  Sent(0, count, type);
  return AllReduce(send, recv, count, type, op, handle, stream);
}
C_Status CountedBroadcast(void* buf, size_t count, C_DataType type, size_t root, C_CCLComm handle, C_Stream stream) {
  Sent(1, count, type);
  return Broadcast(buf, count, type, root, handle, stream);
}
C_Status CountedReduce(void* send, void* recv, size_t count, C_DataType type, C_CCLReduceOp op, size_t root,
                       C_CCLComm handle, C_Stream stream) {
  Sent(2, count, type);
  return Reduce(send, recv, count, type, op, root, handle, stream);
}
C_Status CountedAllGather(void* send, void* recv, size_t count, C_DataType type, C_CCLComm handle, C_Stream stream) {
  Sent(3, count, type);
  return AllGather(send, recv, count, type, handle, stream);
}
C_Status CountedReduceScatter(void* send, void* recv, size_t count, C_DataType type, C_CCLReduceOp op, C_CCLComm handle,
                              C_Stream stream) {
  Sent(4, count, type);
  return ReduceScatter(send, recv, count, type, op, handle, stream);
}

// The groups of this process by the name that an operator is given (xccl_get_comm_name).
std::map<std::string, Comm*>& Known() {
  static std::map<std::string, Comm*> known;
  return known;
}

C_Status UniqueIdSize(size_t* size) {
  *size = 64;
  return C_SUCCESS;
}

C_Status UniqueId(C_CCLRootId* id) {
  static std::atomic<int> number{0};
  std::snprintf(static_cast<char*>(id->data), 64, "/npu_standin_%d_%d", int(getpid()), number.fetch_add(1));
  return C_SUCCESS;
}

C_Status CommInit(size_t ranks, C_CCLRootId* id, size_t rank, C_CCLComm* out) {
  if (ranks > kMaxRanks) return C_ERROR;
  const std::string name(static_cast<const char*>(id->data));
  const int file = shm_open(name.c_str(), O_CREAT | O_RDWR, 0600);
  if (file < 0 || ftruncate(file, sizeof(Board)) != 0) return C_FAILED;
  void* memory = mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (memory == MAP_FAILED) return C_FAILED;
  auto* comm = new Comm{static_cast<Board*>(memory), rank, ranks, name};
  Known()[name] = comm;
  *out = reinterpret_cast<C_CCLComm>(comm);
  const bool all_here = Barrier(comm);
  shm_unlink(name.c_str());  // all have it mapped: the name is not needed, and nothing is left behind after a crash
  return all_here ? C_SUCCESS : C_FAILED;
}

C_Status CommDestroy(C_CCLComm handle) {
  Known().erase(Of(handle)->name);
  munmap(Of(handle)->board, sizeof(Board));
  delete Of(handle);
  return C_SUCCESS;
}

C_Status CommName(C_CCLComm handle, char* name) {
  std::snprintf(name, 64, "%s", Of(handle)->name.c_str());
  return C_SUCCESS;
}

C_Status Nothing() { return C_SUCCESS; }
C_Status OnDevice(const C_Device) { return C_SUCCESS; }
C_Status SetDevice(const C_Device device) {
  current_device = device->id;
  return C_SUCCESS;
}
C_Status GetDevice(const C_Device device) {
  device->id = current_device;
  return C_SUCCESS;
}
C_Status CreateStream(const C_Device, C_Stream* stream) {
  *stream = reinterpret_cast<C_Stream>(new char);
  return C_SUCCESS;
}
C_Status DestroyStream(const C_Device, C_Stream stream) {
  delete reinterpret_cast<char*>(stream);
  return C_SUCCESS;
}
C_Status OnStream(const C_Device, C_Stream) { return C_SUCCESS; }
C_Status AddCallback(const C_Device device, C_Stream stream, C_Callback callback, void* data) {
  C_Status status = C_SUCCESS;
  callback(device, stream, data, &status);
  return status;
}
C_Status CreateEvent(const C_Device, C_Event* event) {
  *event = reinterpret_cast<C_Event>(new char);
  return C_SUCCESS;
}
C_Status DestroyEvent(const C_Device, C_Event event) {
  delete reinterpret_cast<char*>(event);
  return C_SUCCESS;
}
C_Status RecordEvent(const C_Device, C_Stream, C_Event) { return C_SUCCESS; }
C_Status OnEvent(const C_Device, C_Event) { return C_SUCCESS; }

C_Status Allocate(const C_Device, void** pointer, size_t size) {
  *pointer = nullptr;
  if (posix_memalign(pointer, 64, std::max<size_t>(size, 64)) != 0) return C_FAILED;
  allocated += size;
  return C_SUCCESS;
}
C_Status Release(const C_Device, void* pointer, size_t size) {
  std::free(pointer);
  allocated -= size;
  return C_SUCCESS;
}
C_Status Set(const C_Device, void* pointer, unsigned char value, size_t size) {
  std::memset(pointer, value, size);
  return C_SUCCESS;
}
C_Status Copy(const C_Device, void* to, const void* from, size_t size) {
  std::memmove(to, from, size);
  return C_SUCCESS;
}
C_Status CopyOnStream(const C_Device, C_Stream, void* to, const void* from, size_t size) {
  std::memmove(to, from, size);
  return C_SUCCESS;
}
C_Status CopyPeer(const C_Device, const C_Device, void* to, const void* from, size_t size) {
  std::memmove(to, from, size);
  return C_SUCCESS;
}
C_Status CopyPeerOnStream(const C_Device, const C_Device, C_Stream, void* to, const void* from, size_t size) {
  std::memmove(to, from, size);
  return C_SUCCESS;
}

C_Status Count(size_t* count) {
  const char* wanted = std::getenv("NPU_STANDIN_DEVICES");
  *count = wanted ? std::strtoul(wanted, nullptr, 10) : 2;
  return C_SUCCESS;
}
C_Status List(size_t* devices) {
  size_t count = 0;
  Count(&count);
  for (size_t i = 0; i < count; ++i) devices[i] = i;
  return C_SUCCESS;
}
C_Status Stats(const C_Device, size_t* total, size_t* free_bytes) {
  *total = kTotalMemory;
  *free_bytes = kTotalMemory - std::min(kTotalMemory, allocated.load());
  return C_SUCCESS;
}
C_Status MinChunk(const C_Device, size_t* size) {
  *size = 64;
  return C_SUCCESS;
}
// Paddle 3.0 asks for versions without a device, and not for half precision: both forms are here, and the member of the
// interface chooses.
C_Status Version(const C_Device, size_t* version) {
  *version = 1;
  return C_SUCCESS;
}
C_Status Version(size_t* version) { return Version(nullptr, version); }
C_Status Yes(const C_Device, bool* answer) {
  *answer = true;
  return C_SUCCESS;
}
template <typename Interface>
auto AllowHalf(Interface* device, int) -> decltype(device->is_float16_supported, void()) {
  device->is_float16_supported = Yes;
  device->is_bfloat16_supported = Yes;
}
template <typename Interface>
void AllowHalf(Interface*, long) {}

}  // namespace

extern "C" void InitPlugin(CustomRuntimeParams* params) {
  PADDLE_CUSTOM_RUNTIME_CHECK_VERSION(params);
  static char device_type[] = "npu";
  static char sub_type[] = "standin";
  params->device_type = device_type;
  params->sub_device_type = sub_type;
  C_DeviceInterface* device = params->interface;
  std::memset(static_cast<void*>(device), 0, sizeof(C_DeviceInterface));
  device->size = sizeof(C_DeviceInterface);
  device->initialize = Nothing;
  device->finalize = Nothing;
  device->init_device = OnDevice;
  device->set_device = SetDevice;
  device->get_device = GetDevice;
  device->deinit_device = OnDevice;
  device->create_stream = CreateStream;
  device->destroy_stream = DestroyStream;
  device->query_stream = OnStream;
  device->stream_add_callback = AddCallback;
  device->create_event = CreateEvent;
  device->record_event = RecordEvent;
  device->destroy_event = DestroyEvent;
  device->query_event = OnEvent;
  device->synchronize_device = OnDevice;
  device->synchronize_stream = OnStream;
  device->synchronize_event = OnEvent;
  device->stream_wait_event = RecordEvent;
  device->device_memory_allocate = Allocate;
  device->device_memory_deallocate = Release;
  device->device_memory_set = Set;
  device->host_memory_allocate = Allocate;
  device->host_memory_deallocate = Release;
  device->unified_memory_allocate = Allocate;
  device->unified_memory_deallocate = Release;
  device->memory_copy_h2d = Copy;
  device->memory_copy_d2h = Copy;
  device->memory_copy_d2d = Copy;
  device->memory_copy_p2p = CopyPeer;
  device->async_memory_copy_h2d = CopyOnStream;
  device->async_memory_copy_d2h = CopyOnStream;
  device->async_memory_copy_d2d = CopyOnStream;
  device->async_memory_copy_p2p = CopyPeerOnStream;
  device->get_device_count = Count;
  device->get_device_list = List;
  device->device_memory_stats = Stats;
  device->device_min_chunk_size = MinChunk;
  device->get_compute_capability = Version;
  device->get_runtime_version = Version;
  device->get_driver_version = Version;
  AllowHalf(device, 0);
  device->xccl_get_comm_name = CommName;
  device->xccl_get_unique_id_size = UniqueIdSize;
  device->xccl_get_unique_id = UniqueId;
  device->xccl_comm_init_rank = CommInit;
  device->xccl_destroy_comm = CommDestroy;
  device->xccl_all_reduce = CountedAllReduce;
  device->xccl_broadcast = CountedBroadcast;
  device->xccl_reduce = CountedReduce;
  device->xccl_all_gather = CountedAllGather;
  device->xccl_reduce_scatter = CountedReduceScatter;
  device->xccl_group_start = Nothing;
  device->xccl_group_end = Nothing;
  device->xccl_send = Send;
  device->xccl_recv = Recv;
}

// Calls (or bytes) of a collective since the last question with reset.
extern "C" long npu_standin_traffic(const char* name, int bytes, int reset) {
  for (auto& one : traffic) {
    if (std::strcmp(one.name, name) != 0) continue;
    const long found = bytes ? one.bytes.load() : one.calls.load();
    if (reset) one.calls = one.bytes = 0;
    return found;
  }
  return -1;
}

// Sum over the devices of a group, in place, for an operator that talks by itself; -1 for a group that is not known.
extern "C" long npu_standin_sum(const char* group, void* values, long count, int half) {
  auto found = Known().find(group);
  if (found == Known().end()) return -1;
  const auto handle = reinterpret_cast<C_CCLComm>(found->second);
  std::string own(static_cast<char*>(values), count * (half ? 2 : 4));
  return AllReduce(&own[0], values, count, half ? BFLOAT16 : FLOAT32, SUM, handle, nullptr) == C_SUCCESS ? 0 : -1;
}
