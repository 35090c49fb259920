"""Model types that `make architectures`, which writes this file, tried: supported, or refused."""

_NAMES = """
    afmoe aimv2 aimv2_text_model aimv2_vision_model albert altclip altclip_text_model altclip_vision_model apertus
    apertus1p5_text arcee aria aria_text audio-spectrogram-transformer audioflamingo3 audioflamingo3_encoder axk1 axk2
    aya_vision bailing_hybrid bamba bart beam beit bert bert-generation big_bird bigbird_pegasus biogpt bit bitnet
    blenderbot blenderbot-small blip blip_text_model blip_vision_model bloom bridgetower bros camembert canary
    canary_decoder canine chinese_clip chinese_clip_text_model chinese_clip_vision_model chmv2 clap clip
    clip_text_model clip_vision_model clipseg clipseg_text_model clipseg_vision_model codegen cohere cohere2
    cohere2_moe cohere2_vision cohere_asr cohere_compass_vision colmodernvbert colpali convbert convnext convnextv2
    cosmos3_edge_text cosmos3_edge_vision cosmos3_omni cpmant ctrl cvt cwm d_fine dab-detr dac data2vec-audio
    data2vec-text data2vec-vision deberta deberta-v2 deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 deepseek_vl
    deepseek_vl_hybrid deformable_detr deimv2 deit depth_anything dia dia_decoder dia_encoder diffllama dinov2
    dinov2_with_registers dinov3_convnext dinov3_vit distilbert doge donut-swin dots3_note_text dpr dpt efficientloftr
    efficientnet electra embedding_gemma2 embedding_gemma2_text encodec encoder-decoder eomt eomt_dinov3 ernie
    ernie4_5 ernie4_5_moe esmc eurobert exaone exaone4 exaone4_5 exaone4_5_vision exaone_moe falcon falcon_mamba
    flaubert flava flava_image_model flava_multimodal_model flava_text_model flex_olmo flint florence2 fnet focalnet
    funnel fuyu gemma gemma2 gemma3 gemma3_text gemma3n_text gemma4 gemma4_text gemma4_unified gemma4_unified_text git
    git_vision_model glm glm4 glm4_moe glm4_moe_lite glm4v_moe_vision glm4v_vision glm5_next_vision glm_image_vision
    glm_moe_dsa glm_ocr glm_ocr_text glm_ocr_vision glmasr glmasr_encoder got_ocr2 got_ocr2_vision gpt-sw3 gpt2
    gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj gradium_phonon_tts granite granite_docling
    granite_docling_text granite_docling_vision granite_swa granitemoe granitemoe_swa granitemoehybrid
    granitemoeshared grounding-dino groupvit groupvit_text_model gte helium hiera higgs_audio_v2 hubert
    hunyuan_vl_vision hy_v3 hy_v4 hy_v4_vl_vision hyperclovax hyperclovax_vision_v2 ibert idefics2 idefics2_perceiver
    idefics2_vision idefics3 idefics3_vision ijepa imagegpt informer inkling2 inkling2_loop inkling2_loop_text
    inkling2_text inkling2_vision inkling_mm_model inkling_text internlm3 internvl internvl_vision iquestcoder jais2
    janus janus_vision_model jetmoe jina_embeddings_v3 kimi_linear kolibri1 laguna lara_mini lasr_ctc lasr_encoder
    layoutlm layoutlmv3 led lfm2 lfm3 lfm3_vl lfm3_vl_vision lightglue lighton_ocr lilt llama llama4_text llava
    llava_next llava_next_video llava_onevision longcat_flash longformer longt5 luke lw_detr_vit lxmert m2m_100 mamba
    mamba2 marian markuplm maskformer maskformer-swin mbart megatron-bert mellum metaclip_2 metaclip_2_text_model
    metaclip_2_vision_model mgp-str mimi mimi_encoder mimo_v2_flash minicpm3 minimax minimax_m2 minimax_m3_vl
    minimax_m3_vl_text minimax_m3_vl_vision ministral3 mistral mistral3 mistral4 mistral_large4 mistral_large4_text
    mixtral mlcd mlcd_vision_model mm-grounding-dino mobilebert mobilenet_v1 mobilenet_v2 mobilevit mobilevitv2
    modernbert modernbert-decoder modernvbert molmo2_text moonshine moshi moss_transcribe_diarize
    moss_transcribe_diarize_audio mpnet mpt mra mt5 muse_glimmer_text muse_spark_text musicflamingo mvp nanochat
    nemotron3_5_asr nemotron3_5_transcribe_asr_audio nemotron3_5_transcribe_audio nemotron3_diarization
    nemotron3_diarization_audio nemotron_asr_streaming nemotron_asr_streaming_encoder nemotron_h nemotron_h_omni
    neomme nllb-moe nomic_bert nystromformer olmo olmo2 olmo3 olmo_hybrid olmoe omdet-turbo omniasr omniasr_audio
    omniasr_ctc openai-gpt openai_privacy_filter opt ovis2 ovis2_vision owlv2 owlvit paligemma parakeet_ctc
    parakeet_encoder parakeet_rnnt parakeet_tdt patchtsmixer patchtst pegasus pegasus_x persimmon phi phi3 phimoe
    pixio pixtral plbart pocket_tts pocket_tts_audio_tokenizer pocket_tts_audio_tokenizer_encoder poolformer pop2piano
    pp_chart2table pp_chart2table_vision pp_doclayout_v2 pp_doclayout_v3 pp_doclayout_v4 pp_formulanet
    pp_formulanet_text pp_formulanet_vision pp_lcnet pp_lcnet_v3 pp_lcnet_v4 prompt_depth_anything prophetnet pvt_v2
    qianfan_ocr qianfan_ocr_vision qwen2 qwen2_5_vl_vision qwen2_audio qwen2_audio_encoder qwen2_moe qwen3
    qwen3_5_moe_text qwen3_5_moe_vision qwen3_5_text qwen3_5_vision qwen3_moe qwen3_next qwen3_omni_moe_audio_encoder
    qwen3_omni_moe_text qwen3_omni_moe_thinker qwen3_omni_moe_vision_encoder qwen3_vl qwen3_vl_moe qwen3_vl_moe_text
    qwen3_vl_moe_vision qwen3_vl_text qwen3_vl_vision qwen4_exp_vision radio recurrent_gemma regnet rembert resnet
    rf_detr_dinov2 roberta roberta-prelayernorm roc_bert roformer rt_detr rt_detr_resnet rt_detr_v2 rwkv
    sam2_hiera_det_model sam2_vision_model sam3 sam3_lite_text sam3_lite_text_text_model sam3_video sam3_vision_model
    sam3_vit_model sam_hq sam_hq_vision_model sam_vision_model sapiens2 sarvam_mla sarvam_moe seamless_m4t
    seamless_m4t_v2 seed_oss sew sew-d siglip siglip_text_model siglip_vision_model slanext slanext_vision smollm3
    smolvlm smolvlm_vision solar_open speech_to_text speecht5 splinter squeezebert stablelm starcoder2 superglue
    superpoint swiftformer swin swinv2 switch_transformers t5 t5_gemma_module t5gemma t5gemma2 t5gemma2_decoder
    t5gemma2_text tapas textnet time_series_transformer timesformer tipsv2 tipsv2_dpt tipsv2_text_model
    tipsv2_vision_model trocr udop ultrabert ultravbert umt5 unispeech unispeech-sat univnet uvdoc_backbone vaultgemma
    video_llava videomae videomt videoprism videoprism_text_model videoprism_vision_model vilt vipllava
    vision-encoder-decoder vision-text-dual-encoder visual_bert vit vit_mae vit_msn vitdet vitpose vitpose_backbone
    vivit vjepa2 voxtral voxtral_encoder voxtral_realtime_encoder wav2vec2 wav2vec2-bert wav2vec2-conformer wavlm
    wavtokenizer whisper xclip xclip_text_model xclip_vision_model xglm xlm xlm-roberta xlm-roberta-xl xlnet yolos
    yoso youtu zamba zaya zoedepth
"""
TRIED = frozenset(_NAMES.split())
