// A model in the low-memory session that `dmopt session MODEL --language cpp` prints, run once on zeros: prints the shape
// of each output. For models whose inputs are float32; open sizes become 1.
//
//     g++ -std=c++17 examples/serve.cpp -Ionnxruntime/include -Lonnxruntime/lib -lonnxruntime -o serve
//     ./serve model.opt.onnx

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <iostream>
#include <string>
#include <vector>

int main(int count, char** arguments) try {
    if (count != 2) {
        std::cerr << "usage: serve MODEL\n";
        return 2;
    }
    Ort::Env env;
    Ort::SessionOptions options;
    options.DisableMemPattern();
    options.DisableCpuMemArena();
    options.SetGraphOptimizationLevel(ORT_ENABLE_BASIC);
    Ort::Session session(env, arguments[1], options);

    Ort::AllocatorWithDefaultOptions allocator;
    std::vector<std::string> names;
    std::vector<Ort::Value> inputs;
    for (size_t i = 0; i < session.GetInputCount(); ++i) {
        names.emplace_back(session.GetInputNameAllocated(i, allocator).get());
        const Ort::TypeInfo type = session.GetInputTypeInfo(i);
        std::vector<int64_t> shape = type.GetTensorTypeAndShapeInfo().GetShape();
        std::replace_if(shape.begin(), shape.end(), [](int64_t size) { return size < 0; }, 1);
        Ort::Value input = Ort::Value::CreateTensor<float>(allocator, shape.data(), shape.size());
        const size_t elements = input.GetTensorTypeAndShapeInfo().GetElementCount();
        std::fill_n(input.GetTensorMutableData<float>(), elements, 0.0f);
        inputs.push_back(std::move(input));
    }
    std::vector<std::string> results;
    for (size_t i = 0; i < session.GetOutputCount(); ++i) {
        results.emplace_back(session.GetOutputNameAllocated(i, allocator).get());
    }
    const auto pointers = [](const std::vector<std::string>& texts) {
        std::vector<const char*> all;
        for (const std::string& text : texts) all.push_back(text.c_str());
        return all;
    };
    const std::vector<const char*> in = pointers(names), out = pointers(results);
    const std::vector<Ort::Value> outputs =
        session.Run(Ort::RunOptions{nullptr}, in.data(), inputs.data(), in.size(), out.data(), out.size());
    for (size_t i = 0; i < outputs.size(); ++i) {
        std::cout << results[i];
        for (int64_t size : outputs[i].GetTensorTypeAndShapeInfo().GetShape()) std::cout << ' ' << size;
        std::cout << '\n';
    }
} catch (const Ort::Exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
}
