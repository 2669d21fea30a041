// A CUDA device guard for a CPU build of torch: which device is current, and nothing to wait for.
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {
int device_count = 1;
thread_local c10::DeviceIndex current = 0;

c10::Device cuda(c10::DeviceIndex index) { return c10::Device(c10::DeviceType::CUDA, index); }

struct Guard final : public c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  c10::Device exchangeDevice(c10::Device device) const override {
    c10::Device before = cuda(current);
    if (device.index() >= 0) current = device.index();
    return before;
  }
  c10::Device getDevice() const override { return cuda(current); }
  void setDevice(c10::Device device) const override { exchangeDevice(device); }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.index() >= 0) current = device.index();
  }
  c10::Stream getStream(c10::Device device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream getDefaultStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return device_count; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
};

Guard guard;
}  // namespace

extern "C" void pretend_install(int count) {
  device_count = count;
  c10::impl::device_guard_impl_registry[static_cast<size_t>(c10::DeviceType::CUDA)].store(&guard);
}
extern "C" int pretend_current() { return current; }
extern "C" void pretend_set(int index) { current = static_cast<c10::DeviceIndex>(index); }
