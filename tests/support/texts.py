"""Text in many languages, and code: what prompts are made of."""

# ruff: noqa: RUF001 - the commas of Chinese are its own

TEXTS = {
    "English": "The quick brown fox jumps over the lazy dog, and runs away from the old red barn before anybody notices it. ",
    "German": "Die Donaudampfschifffahrtsgesellschaft beförderte im vergangenen Jahr überraschend viele Fahrgäste. ",
    "French": "L'été dernier, nous avons découvert une petite maison près de la forêt, où jouaient les enfants. ",
    "Polish": "Zażółć gęślą jaźń, a potem wróć do domu przed północą, bo jutro czeka nas długa podróż przez góry. ",
    "Russian": "Съешь ещё этих мягких французских булок, да выпей чаю; завтра нас ждёт очень длинная дорога. ",
    "Japanese": "日本語の文章です。これは長い文章で、明日は山を越える長い旅が待っています。東京から京都まで電車で行きます。",
    "Chinese": "今天天气很好，我们一起去公园散步，然后在河边的小餐馆吃午饭，下午再去图书馆看书。",
    "Hindi": "आज मौसम बहुत अच्छा है, चलो पार्क में घूमने चलते हैं और फिर नदी के किनारे खाना खाते हैं। ",
    "Arabic": "الطقس جميل اليوم، فلنذهب إلى الحديقة ثم نتناول الغداء بجانب النهر قبل أن نعود إلى البيت. ",
    "C": "for (int i = 0; i < n; ++i) { total[i] += values[i] * 2; if (x->y != NULL) return -1; }\n",
    "a log": "2026-11-28T16:32:16.123456Z INFO worker request_id=4f9c1a2e-77aa-4c11-9d1e-5f0a8b7c6d5e latency_ms=1234\n",
    "emoji": "😀🎉 Great! 👍🏽 Let's go 🚀✨ ",
}
