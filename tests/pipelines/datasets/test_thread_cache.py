import threading

from pipelines.datasets.thread_cache import cached_by_thread


def test_last_results_of_each_thread():
    calls = []

    @cached_by_thread(2)
    def double(number):
        calls.append(number)
        return 2 * number

    assert [double(n) for n in (1, 2, 1, 2, 3, 2, 1)] == [2, 4, 2, 4, 6, 4, 2]
    assert calls == [1, 2, 3, 1]  # 3 replaced 1, which was used before 2.
    thread = threading.Thread(target=double, args=(1,))
    thread.start()
    thread.join()
    assert calls == [1, 2, 3, 1, 1]
    double(1)
    assert calls == [1, 2, 3, 1, 1]
